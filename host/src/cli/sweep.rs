//! Options of the trials that training in the twin begins with.

use crate::env::twin::Source;
use crate::reward::RewardKind;
use crate::sweep::SweepConfig;
use crate::twin::Calibration;
use brokertuner_core::features::Schema;

/// Random settings that the library is chosen from.
const LIBRARY_POOL: usize = 80;
/// Sites that it is chosen by, at most.
const LIBRARY_SITES_MAX: u64 = 160;

/// How much is tried before the first step.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Trials of fixed settings before the first step, in the twin")]
pub(crate) struct SweepArgs {
    /// Rounds of trials, each with sites of its own; 0: none, the agent begins with nothing.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(..=16))]
    pub(crate) sweep_rounds: u32,
    /// Sites of a round.
    #[arg(long, value_name = "N", default_value_t = 1500, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    sweep_sites: u64,
    /// Settings tried on each site.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    sweep_tries: u16,
    /// Updates of the networks after each round.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    sweep_updates: u64,
}

impl SweepArgs {
    /// A short training spends no more on its library than on a round.
    fn library_sites(&self) -> u64 {
        let trials = self.sweep_sites * u64::from(self.sweep_tries);
        (trials / LIBRARY_POOL as u64).clamp(1, LIBRARY_SITES_MAX)
    }

    /// The sweep of these options.
    pub(crate) fn config(&self, parts: Parts) -> SweepConfig {
        SweepConfig {
            source: parts.source,
            calibrations: parts.calibrations,
            capacity_msgs_per_s: parts.capacity_msgs_per_s,
            schema: parts.schema,
            reward: parts.reward,
            tuned: crate::env::trained(),
            library_pool: LIBRARY_POOL,
            library_sites: self.library_sites(),
            rounds: self.sweep_rounds,
            sites: self.sweep_sites,
            tries: usize::from(self.sweep_tries),
            updates: self.sweep_updates,
            seed: parts.seed,
        }
    }
}

/// What the run's other options say.
pub(crate) struct Parts {
    pub(crate) source: Source,
    pub(crate) calibrations: Vec<Calibration>,
    pub(crate) capacity_msgs_per_s: Option<f64>,
    pub(crate) schema: Schema,
    pub(crate) reward: RewardKind,
    pub(crate) seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_takes_no_more_trials_than_a_round() {
        for (sites, tries, expected) in [(1, 1, 1), (400, 12, 60), (1500, 12, 160), (5000, 12, 160)]
        {
            let args = SweepArgs {
                sweep_rounds: 1,
                sweep_sites: sites,
                sweep_tries: tries,
                sweep_updates: 1,
            };
            assert_eq!(args.library_sites(), expected, "{sites} {tries}");
        }
    }
}
