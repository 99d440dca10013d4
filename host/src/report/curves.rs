//! Learning curves: what several training runs did, and runs that differ in their seed together.

use super::data::Run;
use super::shown;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Episodes that a point of the training curve is the mean of.
pub const WINDOW: usize = 20;
/// Points of a drawn curve.
const POINTS_MAX: usize = 400;

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct At {
    /// Environment steps.
    pub step: u64,
    /// Score, 0..=1.
    pub score: f64,
}

/// Runs that differ in their seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seeds {
    /// Their folders' name without the number at its end, below the folder that all lie in.
    pub name: String,
    /// A curve for each run.
    pub runs: Vec<Vec<At>>,
    /// The mean over the runs: of scores in validation at the steps that all of them have, of
    /// episodes of the last point of each.
    pub mean: Vec<At>,
    /// The lowest and highest of the runs there.
    pub range: Vec<(f64, f64)>,
}

/// Where the curves of some seeds end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct End {
    /// Steps of the longest run.
    pub steps: u64,
    /// Mean of the last scores of the runs.
    pub mean: Option<f64>,
    /// The lowest of them.
    pub lowest: Option<f64>,
    /// The highest of them.
    pub highest: Option<f64>,
}

impl Seeds {
    /// Where the curves end.
    #[must_use]
    pub fn end(&self) -> End {
        let last: Vec<At> = self.runs.iter().filter_map(|run| run.last().copied()).collect();
        let scores = || last.iter().map(|at| at.score);
        End {
            steps: last.iter().map(|at| at.step).max().unwrap_or(0),
            mean: (!last.is_empty()).then(|| scores().sum::<f64>() / last.len() as f64),
            lowest: scores().min_by(f64::total_cmp),
            highest: scores().max_by(f64::total_cmp),
        }
    }
}

/// Both plots.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curves {
    /// Score of the policy in validation.
    pub validation: Vec<Seeds>,
    /// Score of the training episodes, each point the mean of the last [`WINDOW`].
    pub episodes: Vec<Seeds>,
}

impl Curves {
    /// Of some runs; `None` where none has a score.
    #[must_use]
    pub fn of(runs: &[Run]) -> Option<Curves> {
        let validation = seeds(
            runs,
            |run| {
                run.validation.iter().map(|row| At { step: row.step, score: row.score }).collect()
            },
            over_common,
        );
        let episodes = seeds(runs, |run| running_mean(&episode_scores(run)), over_last);
        let is_empty = validation.is_empty() && episodes.is_empty();
        (!is_empty).then_some(Curves { validation, episodes })
    }
}

fn episode_scores(run: &Run) -> Vec<At> {
    let score = |row: &crate::logs::ProgressRow| {
        // The row at the end of a run is of no episode.
        row.env?;
        Some(At { step: row.step, score: row.episode_score_mean? })
    };
    run.progress.iter().filter_map(score).collect()
}

/// Each point the mean of those up to it, at most [`WINDOW`] of them; thinned evenly.
fn running_mean(points: &[At]) -> Vec<At> {
    let mean = |end: usize| {
        let window = &points[(end + 1).saturating_sub(WINDOW)..=end];
        let sum: f64 = window.iter().map(|at| at.score).sum();
        At { step: points[end].step, score: sum / window.len() as f64 }
    };
    let last = points.len().saturating_sub(1);
    let every = points.len().div_ceil(POINTS_MAX).max(1);
    (0..points.len()).filter(|index| index % every == 0 || *index == last).map(mean).collect()
}

/// Runs by their folder's name without its last number.
fn seeds(
    runs: &[Run],
    curve: impl Fn(&Run) -> Vec<At>,
    over: fn(&[Vec<At>]) -> Over,
) -> Vec<Seeds> {
    let mut groups: BTreeMap<String, Vec<Vec<At>>> = BTreeMap::new();
    let common = common_folder(runs);
    let parent =
        common.file_name().map_or_else(|| "runs/".to_owned(), |name| shown(Path::new(name)) + "/");
    for run in runs {
        let mut points = curve(run);
        points.sort_by_key(|at| at.step);
        if !points.is_empty() {
            let name = shown(run.dir.strip_prefix(&common).unwrap_or(&run.dir));
            let stem = name.trim_end_matches('/').trim_end_matches(|c: char| c.is_ascii_digit());
            // Folders that are numbers have the name of the one that they lie in.
            let stem = if stem.is_empty() { parent.as_str() } else { stem };
            groups.entry(stem.to_owned()).or_default().push(points);
        }
    }
    let together = |(name, runs): (String, Vec<Vec<At>>)| {
        let (mean, range) = over(&runs);
        Seeds { name, runs, mean, range }
    };
    groups.into_iter().map(together).collect()
}

/// The folder that all runs lie in: their names need not repeat it.
fn common_folder(runs: &[Run]) -> PathBuf {
    let mut folders = runs.iter().map(|run| run.dir.parent().unwrap_or(Path::new("")));
    let first = folders.next().unwrap_or(Path::new("")).to_owned();
    folders.fold(first, |common, folder| {
        let both = common.components().zip(folder.components());
        both.take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
    })
}

/// Mean and range of some curves.
type Over = (Vec<At>, Vec<(f64, f64)>);

/// At the steps that all curves have.
fn over_common(runs: &[Vec<At>]) -> Over {
    let steps = runs.iter().flatten().map(|at| at.step).collect();
    let exact = |run: &[At], step| {
        run.binary_search_by_key(&step, |at| at.step).ok().map(|index| run[index].score)
    };
    over(runs, &steps, exact)
}

/// At the steps of any curve, of each the last point until there: episodes end at steps of their
/// own. Before all curves have begun, and after one has ended, there is none.
fn over_last(runs: &[Vec<At>]) -> Over {
    let steps: BTreeSet<u64> = runs.iter().flatten().map(|at| at.step).collect();
    let last = |run: &[At], step| {
        let ended = run.last().is_none_or(|at| at.step < step);
        let index = run.partition_point(|at| at.step <= step).checked_sub(1)?;
        (!ended).then_some(run[index].score)
    };
    let every = steps.len().div_ceil(POINTS_MAX).max(1);
    over(runs, &steps.into_iter().step_by(every).collect(), last)
}

fn over(
    runs: &[Vec<At>],
    steps: &BTreeSet<u64>,
    score_at: impl Fn(&[At], u64) -> Option<f64>,
) -> Over {
    if runs.len() < 2 {
        return (Vec::new(), Vec::new());
    }
    let of_all = steps.iter().filter_map(|&step| {
        let scores: Vec<f64> =
            runs.iter().map(|run| score_at(run, step)).collect::<Option<Vec<f64>>>()?;
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Some((At { step, score: mean }, (low, high)))
    });
    of_all.unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{ProgressRow, ValidationRow};

    fn run(dir: &str, validation: &[(u64, f64)]) -> Run {
        let row = |&(step, score): &(u64, f64)| ValidationRow { step, wall_s: 0.0, score };
        Run {
            dir: dir.into(),
            progress: Vec::new(),
            validation: validation.iter().map(row).collect(),
        }
    }

    #[test]
    fn folders_that_differ_in_their_number_are_seeds() {
        let curves = Curves::of(&[
            run("runs/big-1", &[(0, 0.2), (100, 0.4), (200, 0.5)]),
            run("runs/small-1", &[(0, 0.1)]),
            run("runs/big-12", &[(0, 0.4), (200, 0.8)]),
            run("runs/none", &[]),
        ]);
        let found = curves.map(|curves| curves.validation).unwrap_or_default();
        let names: Vec<(&str, usize)> =
            found.iter().map(|seeds| (seeds.name.as_str(), seeds.runs.len())).collect();
        assert_eq!(names, [("big-", 2), ("small-", 1)]);
        let steps: Vec<u64> = found[0].mean.iter().map(|at| at.step).collect();
        assert_eq!(steps, [0, 200]);
        assert!((found[0].mean[1].score - 0.65).abs() < 1e-12);
        assert_eq!(found[0].range[1], (0.5, 0.8));
        assert_eq!(found[1].mean, []);
        assert_eq!(Curves::of(&[run("runs/none", &[])]), None);
    }

    #[test]
    fn folders_that_are_numbers_are_seeds_too() {
        let points = [(0, 0.2), (100, 0.4)];
        let curves = Curves::of(&[run("runs/seed/1", &points), run("runs/seed/2", &points)]);
        let found = curves.map(|curves| curves.validation).unwrap_or_default();
        assert_eq!((found.len(), found[0].name.as_str(), found[0].mean.len()), (1, "seed/", 2));
    }

    #[test]
    fn episodes_that_end_at_different_steps_have_a_mean() {
        let at = |points: &[(u64, f64)]| -> Vec<At> {
            points.iter().map(|&(step, score)| At { step, score }).collect()
        };
        let runs = [at(&[(3, 0.0), (10, 0.5), (20, 1.0)]), at(&[(5, 0.2), (12, 0.3)])];
        let (mean, range) = over_last(&runs);
        let found: Vec<(u64, f64)> = mean.iter().map(|at| (at.step, at.score)).collect();
        assert_eq!(found, [(5, 0.1), (10, 0.35), (12, 0.4)]);
        assert_eq!(range[2], (0.3, 0.5));
        assert_eq!(over_last(&runs[..1]), (vec![], vec![]));
    }

    #[test]
    fn an_episodes_curve_is_the_mean_of_the_last_ones() {
        let rows = (0..1000).map(|step| ProgressRow {
            step,
            env: (step < 999).then_some(0),
            episode_score_mean: (step % 2 == 0).then_some(if step < 500 { 0.0 } else { 1.0 }),
            ..ProgressRow::default()
        });
        let run = Run { dir: "a".into(), progress: rows.collect(), validation: Vec::new() };
        let scores = episode_scores(&run);
        assert_eq!(scores.len(), 500);
        let curve = running_mean(&scores);
        assert!(curve.len() <= POINTS_MAX + 1, "{}", curve.len());
        assert_eq!(curve.last().map(|at| at.step), Some(998));
        let at = |step| curve.iter().find(|at| at.step == step).map(|at| at.score);
        assert_eq!((at(0), at(496), at(998)), (Some(0.0), Some(0.0), Some(1.0)));
        // Of 20 episodes, the last 3 have the other score.
        assert_eq!(at(504), Some(3.0 / 20.0));
    }
}
