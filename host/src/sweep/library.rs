//! Settings that between them serve most sites: worth trying on every one.

use super::{Output, Site, SweepConfig};
use rand::RngExt;
use rayon::prelude::*;

/// Settings that are chosen.
const KEPT: usize = 12;
/// Numbers of the sites, beyond those of all rounds.
const FIRST_SITE: u64 = 1 << 24;

/// Chooses one after the other the settings that add most to the mean over the sites of the best
/// (greedy, within 1 - 1/e of the best choice: Nemhauser et al. 1978).
pub(super) fn choose(
    config: &SweepConfig,
    is_interrupted: fn() -> bool,
) -> anyhow::Result<Vec<Output>> {
    let mut rng = config.rng(FIRST_SITE);
    let mut random = || -> Output { std::array::from_fn(|_| rng.random_range(-1.0..=1.0)) };
    let pool: Vec<Output> = (0..config.library_pool).map(|_| random()).collect();
    let table = (0..config.library_sites)
        .into_par_iter()
        .map(|index| {
            let mut rng = config.rng(FIRST_SITE + 1 + index);
            let site: Site = config.site(FIRST_SITE + index, &mut rng)?;
            let mut reward = |output: &Output| {
                let found =
                    (!is_interrupted()).then(|| site.play(config, Some(*output), false, &mut rng));
                found.flatten().map_or(0.0, |tried| tried.reward)
            };
            Ok(pool.iter().map(&mut reward).collect())
        })
        .collect::<anyhow::Result<Vec<Vec<f64>>>>()?;
    Ok(cover(&table, KEPT).into_iter().map(|index| pool[index]).collect())
}

/// Columns of `table` (a row for each site) that between them have the best sum of best rewards.
pub(super) fn cover(table: &[Vec<f64>], count: usize) -> Vec<usize> {
    let columns = table.first().map_or(0, Vec::len);
    let mut best = vec![f64::NEG_INFINITY; table.len()];
    let mut chosen = Vec::new();
    for _ in 0..count.min(columns) {
        let total = |column: usize| {
            table.iter().zip(&best).map(|(row, best)| row[column].max(*best)).sum::<f64>()
        };
        let rest = (0..columns).filter(|column| !chosen.contains(column));
        let Some(next) = rest.max_by(|&a, &b| total(a).total_cmp(&total(b))) else { break };
        for (best, row) in best.iter_mut().zip(table) {
            *best = best.max(row[next]);
        }
        chosen.push(next);
    }
    chosen
}
