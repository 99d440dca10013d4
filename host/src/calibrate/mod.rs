//! `host calibrate`: what a broker costs on this machine, for the twin.
//!
//! Costs are found by holding the twin against the broker: the same small loads run in both, and
//! the costs are those with which the twin spends the CPU time per delivery that the broker spent.
//! So whatever the twin counts coarsely, it counts alike here and in training.

pub mod check;
mod fit;
mod loads;

use crate::broker::{BrokerProcess, Mosquitto, SpawnConfig, cpu_time};
use crate::load::{LoadConfig, LoadGenerator};
use crate::progress::Progress;
use crate::scenario::Scenario;
use crate::trial::{Outcome, Profile, Setter, Trial};
use crate::twin::Calibration;
use anyhow::{Context as _, bail};
use brokertuner_core::{Settings, render};
use brokertuner_edge::pid::PidFinder;
use brokertuner_edge::sampler::{Sampler, SamplerOptions};
use loads::{AWAY_S, KEEP_ALL, KEPT, KEPT_MESSAGES, LOADS};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// How often a load that the machine was too slow for is measured again: others take a shared one for a
/// while.
const AGAIN_MAX: usize = 5;
/// Connections of the measurement of what one takes.
const CROWD: u32 = 300;
/// Restarts that the median is of.
const RESTARTS: usize = 5;
/// What the broker calls its database.
const DATABASE: &str = "mosquitto.db";
/// How long CPU time is watched for a save.
const SAVE_WINDOW: Duration = Duration::from_millis(400);
/// Probes of the agent, and the wait between two looks at them.
const PROBES: usize = 11;
const PROBE_PERIOD: Duration = Duration::from_millis(100);

/// A calibration, and how well the twin spends what the broker spent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The result.
    pub calibration: Calibration,
    /// Load by load.
    pub rows: Vec<Row>,
}

/// One load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What it is like.
    pub name: String,
    /// CPU time per delivery of the real broker.
    pub real_us: f64,
    /// The same in the twin, with the costs that were found.
    pub twin_us: f64,
}

/// Measures `mosquitto` on this machine; takes about three minutes.
///
/// # Errors
/// A broker that cannot be started or measured; an interrupt.
pub fn calibrate(mosquitto: &Mosquitto, pin: bool, seed: u64) -> anyhow::Result<Report> {
    let bench = Bench { mosquitto: mosquitto.clone(), pin, seed };
    let progress = Progress::new(LOADS.len() as u64 + 4);
    let mut measured = Vec::with_capacity(LOADS.len());
    for (index, load) in LOADS.iter().enumerate() {
        progress.set(index as u64, load.name.to_owned());
        measured.push(bench.cost_us(load)?);
    }
    let step = |number: usize, what: &str| {
        progress.set((LOADS.len() + number) as u64, what.to_owned());
    };
    step(0, "memory");
    let memory = bench.memory()?;
    step(1, "saves and restarts");
    let (save_us_base, save_us_per_mib) = bench.saves()?;
    let restart_us = bench.restart_us()?;
    step(2, "the agent's probe");
    let probe_us = bench.probe_us()?;
    let before = Calibration {
        window_holds: crate::broker::window_holds(mosquitto)?,
        restart_us,
        save_us_base,
        save_us_per_mib,
        probe_us,
        ..memory
    };
    step(3, "the twin's costs");
    fitted(&before, &measured)
}

/// The costs found anew from the measurements of an earlier report: the twin may have changed.
///
/// # Errors
/// A report of other loads.
pub fn refit(report: &Report) -> anyhow::Result<Report> {
    let is_alike = LOADS.iter().map(|load| load.name).eq(report.rows.iter().map(|row| &row.name));
    anyhow::ensure!(is_alike, "the measurements are of other loads; measure again");
    let measured: Vec<f64> = report.rows.iter().map(|row| row.real_us).collect();
    let costs = Calibration::default().costs;
    fitted(&Calibration { costs, ..report.calibration }, &measured)
}

fn fitted(before: &Calibration, measured: &[f64]) -> anyhow::Result<Report> {
    let calibration = fit::fit(before, measured)?;
    let rows = LOADS.iter().zip(measured).map(|(load, real_us)| {
        let twin_us = fit::twin_us(load, &calibration)?;
        anyhow::Ok(Row { name: load.name.to_owned(), real_us: *real_us, twin_us })
    });
    Ok(Report { calibration, rows: rows.collect::<anyhow::Result<_>>()? })
}

/// Rules of a run that only looks at costs: a second of lead-in.
pub(crate) fn profile() -> anyhow::Result<Profile> {
    Ok(Profile { lead_in_s: 1, lead_in_sys_periods: 0, ..Profile::judging()? })
}

fn parsed(conf: &str) -> anyhow::Result<Settings> {
    render::parse(conf).with_context(|| format!("{conf:?} is no drop-in"))
}

struct Bench {
    mosquitto: Mosquitto,
    pin: bool,
    seed: u64,
}

impl Bench {
    fn run(&self, scenario: Scenario, conf: &str) -> anyhow::Result<Outcome> {
        let trial = Trial {
            mosquitto: self.mosquitto.clone(),
            scenario: Arc::new(scenario),
            setter: Setter::Fixed(parsed(conf)?),
            seed: self.seed,
            profile: profile()?,
            pin: self.pin,
            capacity_msgs_per_s: None,
            allow_uncapped: false,
        };
        trial.run()
    }

    /// CPU time per delivery.
    fn cost_us(&self, load: &loads::Load) -> anyhow::Result<f64> {
        let mut outcome = self.run(load.scenario()?, load.conf)?;
        for _ in 0..AGAIN_MAX {
            if !outcome.load.is_void {
                break;
            }
            tracing::warn!(load = load.name, "the machine was too slow; measuring again");
            outcome = self.run(load.scenario()?, load.conf)?;
        }
        if outcome.load.is_void {
            bail!("the machine is too slow for the load {:?}: end what else runs on it", load.name);
        }
        let share = outcome.cpu_share.context("the kernel does not count CPU time")?;
        let delivered = outcome.load.delivered_per_s;
        if delivered <= 0.0 || share <= 0.0 {
            bail!("nothing was delivered under the load {:?}", load.name);
        }
        Ok(share * 1e6 / delivered)
    }

    /// Everything about memory, over the other defaults.
    fn memory(&self) -> anyhow::Result<Calibration> {
        let max = |outcome: &Outcome| {
            outcome.load.rss_bytes_max.map(|bytes| bytes as f64).context("no memory was seen")
        };
        let base = max(&self.run(loads::crowd(1)?, KEEP_ALL)?)?;
        let crowd = max(&self.run(loads::crowd(CROWD)?, KEEP_ALL)?)?;
        let mut grown = [0.0; KEPT.len()];
        let mut kept_share = 0.0;
        for (grown, (readers, bytes)) in grown.iter_mut().zip(KEPT) {
            let outcome = self.run(loads::kept(readers, bytes)?, KEEP_ALL)?;
            let most = max(&outcome)? - base;
            let end = outcome.rss_bytes_end.unwrap_or(0) as f64 - base;
            *grown = most / f64::from(KEPT_MESSAGES);
            kept_share += (end / most.max(1.0)).clamp(0.0, 1.0) / KEPT.len() as f64;
        }
        let [one, four, large] = grown;
        let bytes_per_entry = ((four - one) / 3.0).max(0.0);
        let payload_factor = ((large - one) / f64::from(KEPT[2].1 - KEPT[0].1)).max(0.1);
        let payload = payload_factor * f64::from(KEPT[0].1);
        #[allow(clippy::cast_possible_truncation, reason = "bytes of memory")]
        Ok(Calibration {
            rss_bytes_base: base as u64,
            bytes_per_client: ((crowd - base) / f64::from(CROWD)).max(0.0) as u64,
            bytes_per_entry,
            bytes_per_message: (one - bytes_per_entry - payload).max(0.0),
            payload_factor,
            rss_kept_share: kept_share,
            ..Calibration::default()
        })
    }

    fn spawn(&self, persistence: bool) -> anyhow::Result<BrokerProcess> {
        let dropin = Some(KEEP_ALL.to_owned());
        let config = SpawnConfig { persistence, dropin, ..SpawnConfig::default() };
        Ok(BrokerProcess::spawn(&self.mosquitto, &config)?)
    }

    /// CPU time of a save of nothing, and of each MiB.
    fn saves(&self) -> anyhow::Result<(f64, f64)> {
        let cost_us = |broker: &BrokerProcess| {
            let used = || cpu_time(broker.pid());
            let before = used()?;
            std::thread::sleep(SAVE_WINDOW);
            let idle = used()?;
            broker.save()?;
            std::thread::sleep(SAVE_WINDOW);
            let saving = (used()? - idle).as_secs_f64() - (idle - before).as_secs_f64();
            anyhow::Ok(saving.max(0.0) * 1e6)
        };
        let broker = self.spawn(true)?;
        let base_us = cost_us(&broker)?;
        let (readers, bytes) = KEPT[2];
        let config = LoadConfig {
            seed: self.seed,
            ..LoadConfig::new(Arc::new(loads::kept(readers, bytes)?), broker.addr())
        };
        let load = LoadGenerator::start(config)?;
        // Near the end of the absence; without its load the broker does nothing but save.
        std::thread::sleep(Duration::from_secs(u64::from(AWAY_S)));
        drop(load);
        let full_us = cost_us(&broker)?;
        let database = broker.data_dir().join(DATABASE);
        let bytes = std::fs::metadata(&database)
            .with_context(|| format!("the broker saved no {}", database.display()))?
            .len();
        let mib = bytes as f64 / 1_048_576.0;
        Ok((base_us, (full_us - base_us).max(0.0) / mib))
    }

    fn restart_us(&self) -> anyhow::Result<f64> {
        let broker = self.spawn(false)?;
        let mut took = Vec::with_capacity(RESTARTS);
        for _ in 0..RESTARTS {
            let info = broker.restart()?;
            took.push((info.stop_took + info.start_took).as_secs_f64() * 1e6);
        }
        Ok(median(took))
    }

    /// The agent's own round trip through a broker at rest.
    fn probe_us(&self) -> anyhow::Result<f64> {
        let broker = self.spawn(false)?;
        let mut sampler = Sampler::start(
            SamplerOptions {
                address: broker.addr(),
                client_id: "brokertuner-calibrate".to_owned(),
                credentials: None,
                probe_interval: Some(PROBE_PERIOD),
                clock: brokertuner_core::Instant::now,
                tls: None,
                mqtt: brokertuner_edge::mqtt::ProtocolChoice::default(),
            },
            PidFinder::pid_file(broker.pid_path(), broker.addr()),
        )?;
        let mut seen = Vec::with_capacity(PROBES);
        for _ in 0..10 * PROBES {
            std::thread::sleep(PROBE_PERIOD);
            seen.extend(sampler.sample().probe.latency_us_qos1.map(f64::from));
            if seen.len() >= PROBES {
                return Ok(median(seen));
            }
        }
        bail!("the agent's probe did not come back")
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
