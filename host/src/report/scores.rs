//! Scores by load and arm, their intervals and means.

use super::ReportError;
use super::data::Results;
use crate::evaluate::{Record, mean_and_sd, summarise};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Rows of a table that a page can bear.
const CELLS_MAX: usize = 20_000;
/// Scores of the twin that differ by no more are of one and the same play.
const SAME: f64 = 1e-9;
/// The arm that nobody set.
pub const DEFAULT: &str = "default";
/// What stands for a version where the broker is simulated.
const TWIN: &str = "twin";
/// Arms with other settings for each load that are not the search's best.
const NOT_SEARCHED: [&str; 2] = ["rule", "random"];

/// Results that may stand in one table: the same rules, and a name means the same everywhere.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Their measurements, each once.
    pub records: Vec<Record>,
    /// What its names mean.
    claims: BTreeMap<Claim, String>,
}

/// What a digest is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    Rules,
    Scenario(String),
    /// An arm and its actor; with the load where the arm has other settings for each.
    Setter(String, Option<u64>, Option<String>),
    /// Whether the arm has other settings for each load.
    Kind(String),
    /// Rates that are multiples of it are no others'.
    Capacity,
}

fn claims(records: &[Record]) -> BTreeMap<Claim, String> {
    let of = |record: &Record| {
        let identity = &record.identity;
        let load = identity.is_per_load.then(|| record.scenario.clone());
        [
            (Claim::Rules, identity.rules.clone()),
            (Claim::Scenario(record.scenario.clone()), identity.scenario.clone()),
            (Claim::Setter(record.arm.clone(), record.actor, load), identity.setter.clone()),
            (Claim::Kind(record.arm.clone()), identity.is_per_load.to_string()),
        ]
    };
    let capacity = records.iter().find_map(|record| record.outcome.load.capacity_msgs_per_s);
    let capacity = capacity.map(|capacity| (Claim::Capacity, capacity.to_string()));
    records.iter().flat_map(of).chain(capacity).collect()
}

/// Puts results together where they can be compared: profile, Mosquitto, pinning and program are
/// the same, and no load or arm of one name is another load or arm.
#[must_use]
pub fn group(results: Vec<Results>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for Results { path, records, .. } in results {
        if records.is_empty() {
            continue;
        }
        let new = claims(&records);
        let fits = |group: &Group| {
            new.iter().all(|(claim, digest)| group.claims.get(claim).is_none_or(|d| d == digest))
        };
        let index = groups.iter().position(fits).unwrap_or_else(|| {
            groups.push(Group::default());
            groups.len() - 1
        });
        let group = &mut groups[index];
        group.files.push(path);
        group.claims.extend(new);
        group.records.extend(records);
    }
    for group in &mut groups {
        group.records = distinct(std::mem::take(&mut group.records));
    }
    groups
}

/// Without what says nothing: copies of a measurement, and void ones that were made again.
fn distinct(records: Vec<Record>) -> Vec<Record> {
    let key = |record: &Record| {
        let Record { scenario, arm, actor, repeat, seed, .. } = record;
        (scenario.clone(), arm.clone(), *actor, *repeat, *seed)
    };
    let counted: BTreeSet<_> = records.iter().filter(|one| !one.is_void).map(key).collect();
    let mut seen = BTreeSet::new();
    let mut is_new = |record: &Record| {
        let is_made_again = record.is_void && counted.contains(&key(record));
        // Two measurements differ in some figure, if only in a latency.
        let text = serde_json::to_string(record).unwrap_or_default();
        !is_made_again && seen.insert(text)
    };
    records.into_iter().filter(|record| is_new(record)).collect()
}

/// An arm on a load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Name of the load.
    pub scenario: String,
    /// Name of the arm.
    pub arm: String,
    /// Measurements that count.
    pub repeats: usize,
    /// Measurements in which the machine was too slow.
    pub void: usize,
    /// Of those that count, without the CPU quota that the load asks for.
    pub uncapped: usize,
    /// Mean score, 0..=1; `None` where no measurement counts.
    pub mean: Option<f64>,
    /// Half of the 95 % interval of the mean, by Student's t over what is independent; `None` below
    /// two, and where the twin plays the same again.
    pub half_95: Option<f64>,
}

/// An arm over the loads that every arm was measured on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// Name of the arm.
    pub arm: String,
    /// Mean of its means, 0..=1; `None` where no load is common.
    pub mean: Option<f64>,
    /// The share of what the best per-site settings gain over the default that this arm gains.
    pub headroom: Option<f64>,
}

/// Results that stand in one table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Version of the broker; `twin` where it is simulated.
    pub broker_version: String,
    /// The result files.
    pub files: Vec<PathBuf>,
    /// Names of the loads, in order.
    pub scenarios: Vec<String>,
    /// Names of the arms, in order.
    pub arms: Vec<String>,
    /// By load, then arm.
    pub cells: Vec<Cell>,
    /// By arm.
    pub means: Vec<Mean>,
    /// The per-site arm that headroom is measured by.
    pub best: Option<String>,
    /// The loads that the means are over.
    pub scenarios_common: Vec<String>,
}

impl Scores {
    /// Of a group; `best` is the per-site arm that headroom is measured by, where the group has it.
    ///
    /// # Errors
    /// More than a page can bear.
    pub fn of(group: &Group, best: Option<&str>) -> Result<Scores, ReportError> {
        let summaries = summarise(&group.records);
        if summaries.len() > CELLS_MAX {
            let what = "pairs of load and arm".to_owned();
            return Err(ReportError::TooMany { what, limit: CELLS_MAX });
        }
        let mut arms: Vec<String> = Vec::new();
        for record in &group.records {
            let is_shown = summaries.iter().any(|summary| summary.arm == record.arm);
            if is_shown && !arms.contains(&record.arm) {
                arms.push(record.arm.clone());
            }
        }
        let scenarios: BTreeSet<String> =
            summaries.iter().map(|summary| summary.scenario.clone()).collect();
        let broker_version =
            group.records.first().map_or_else(String::new, |first| first.broker_version.clone());
        let is_twin = broker_version == TWIN;
        let cells = summaries
            .into_iter()
            .map(|summary| Cell {
                half_95: summary
                    .score_sd
                    .filter(|sd| !is_twin || *sd > SAME)
                    .and_then(|sd| half_95(sd, summary.independent)),
                scenario: summary.scenario,
                arm: summary.arm,
                repeats: summary.repeats,
                void: summary.void,
                uncapped: summary.uncapped,
                mean: summary.score_mean,
            })
            .collect();
        let mut scores = Scores {
            broker_version,
            files: group.files.clone(),
            scenarios: scenarios.into_iter().collect(),
            arms,
            cells,
            means: Vec::new(),
            best: None,
            scenarios_common: Vec::new(),
        };
        scores.average(group, best);
        Ok(scores)
    }

    /// Where it was measured, for people.
    #[must_use]
    pub fn bench(&self) -> String {
        bench(&self.broker_version)
    }

    /// What the means are over, for people.
    #[must_use]
    pub fn common(&self) -> String {
        match (self.scenarios_common.len(), self.scenarios.len()) {
            (0, _) => "over no load: none was measured with every arm".to_owned(),
            (1, 1) => "over the one load".to_owned(),
            (common, all) if common == all => format!("over all {all} loads"),
            (common, all) => {
                format!("over the {common} of {all} loads that every arm was measured on")
            }
        }
    }

    /// That arm on that load.
    #[must_use]
    pub fn cell(&self, scenario: &str, arm: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.scenario == scenario && cell.arm == arm)
    }

    fn average(&mut self, group: &Group, best: Option<&str>) {
        let mean_of = |scenario: &str, arm: &str| self.cell(scenario, arm).and_then(|c| c.mean);
        let is_common =
            |scenario: &&String| self.arms.iter().all(|arm| mean_of(scenario, arm).is_some());
        let common: Vec<String> = self.scenarios.iter().filter(is_common).cloned().collect();
        let mean = |arm: &str| {
            let means: Vec<f64> =
                common.iter().filter_map(|scenario| mean_of(scenario, arm)).collect();
            (!means.is_empty()).then(|| mean_and_sd(&means).0)
        };
        let best = match best {
            Some(name) => self.arms.iter().find(|arm| *arm == name).cloned(),
            None => per_site(&group.records)
                .into_iter()
                .max_by(|a, b| mean(a).unwrap_or(0.0).total_cmp(&mean(b).unwrap_or(0.0))),
        };
        let ends = mean(DEFAULT).zip(best.as_deref().and_then(mean));
        let means = self.arms.iter().map(|arm| Mean {
            arm: arm.clone(),
            mean: mean(arm),
            headroom: mean(arm)
                .zip(ends)
                .and_then(|(mean, (default, best))| headroom(mean, default, best)),
        });
        (self.means, self.best) = (means.collect(), best);
        self.scenarios_common = common;
    }
}

/// Whether some results have the arm that headroom is to be measured by.
///
/// # Errors
/// None has it.
pub(super) fn check_best(groups: &[Group], best: &str) -> Result<(), ReportError> {
    let arms = || groups.iter().flat_map(|group| &group.records).map(|record| record.arm.as_str());
    if groups.is_empty() || arms().any(|arm| arm == best) {
        return Ok(());
    }
    let known: BTreeSet<&str> = arms().collect();
    Err(ReportError::NoSuch {
        option: "--best",
        name: best.to_owned(),
        reason: "no arm of the results",
        known: known.into_iter().collect::<Vec<_>>().join(", "),
    })
}

/// Where something was measured, for people.
pub(super) fn bench(broker_version: &str) -> String {
    match broker_version {
        TWIN => "in the twin".to_owned(),
        version => format!("on Mosquitto {version}"),
    }
}

/// Arms of `host evaluate --per-site`: other settings for each load, out of a folder.
fn per_site(records: &[Record]) -> Vec<String> {
    let is_per_site = |record: &&Record| {
        let is_try = record.arm.starts_with("random-");
        record.identity.is_per_load && !NOT_SEARCHED.contains(&record.arm.as_str()) && !is_try
    };
    let names: BTreeSet<&String> =
        records.iter().filter(is_per_site).map(|record| &record.arm).collect();
    names.into_iter().cloned().collect()
}

/// The share of the way from `default` to `best`; `None` where there is no way to go.
#[must_use]
pub fn headroom(mean: f64, default: f64, best: f64) -> Option<f64> {
    /// Means closer than this are the same.
    const GAP_MIN: f64 = 1e-6;
    (best - default > GAP_MIN).then(|| (mean - default) / (best - default))
}

/// Half the 95 % interval of a mean over `count` values with this standard deviation.
#[must_use]
pub fn half_95(sd: f64, count: usize) -> Option<f64> {
    (count > 1).then(|| student_t_975(count - 1) * sd / (count as f64).sqrt())
}

/// The 97.5 % point of Student's t: tables to 30 degrees of freedom, beyond that the first terms of
/// its expansion about the normal distribution (error below 0.001).
fn student_t_975(freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    match freedom.checked_sub(1).and_then(|index| TABLE.get(index)) {
        Some(t) => *t,
        None => 1.960 + 2.372 / freedom as f64 + 2.822 / (freedom as f64).powi(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headroom_by_hand() {
        let near = |found: Option<f64>, wanted: f64| {
            assert!(found.is_some_and(|found| (found - wanted).abs() < 1e-9), "{found:?}");
        };
        near(headroom(0.3, 0.3, 0.8), 0.0);
        near(headroom(0.8, 0.3, 0.8), 1.0);
        near(headroom(0.7, 0.3, 0.8), 0.8);
        near(headroom(0.2, 0.3, 0.8), -0.2);
        near(headroom(0.9, 0.3, 0.8), 1.2);
        assert_eq!(headroom(0.5, 0.8, 0.8), None);
        assert_eq!(headroom(0.5, 0.8, 0.7), None);
    }

    #[test]
    fn intervals_by_the_tables() {
        assert_eq!(half_95(0.1, 0), None);
        assert_eq!(half_95(0.1, 1), None);
        // t of 2 degrees of freedom, over the root of 3.
        assert!(half_95(0.1, 3).is_some_and(|half| (half - 0.4303 / 3f64.sqrt()).abs() < 1e-9));
        for (freedom, t) in [(31, 2.0395), (40, 2.0211), (60, 2.0003), (120, 1.9799)] {
            assert!((student_t_975(freedom) - t).abs() < 1e-3, "{freedom}");
        }
        assert!((1..200).all(|freedom| student_t_975(freedom) > student_t_975(freedom + 1)));
    }
}
