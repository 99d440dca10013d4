//! Score over environment steps: a thin line for each run, a thick one for the mean of its seeds.

use super::{COLOURS, GRID, INK, Legend, MUTED, Plot, Section, draw, font, write};
use crate::report::ReportError;
use crate::report::curves::{At, Curves, Seeds, WINDOW};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use std::ops::Range;

const WIDTH: i32 = 880;
const HEIGHT: i32 = 400;

pub(super) fn plots(curves: &Curves) -> Result<Vec<Plot>, ReportError> {
    let episodes = format!("Score of training episodes, mean of the last {WINDOW}");
    let both = [
        ("learning-validation.svg", "Score of the policy in validation", &curves.validation),
        ("learning-episodes.svg", episodes.as_str(), &curves.episodes),
    ];
    both.into_iter()
        .filter(|(_, _, seeds)| !seeds.is_empty())
        .map(|(file, title, seeds)| {
            let svg = one(title, seeds)?;
            let (file, title) = (file.to_owned(), title.to_owned());
            Ok(Plot { section: Section::Curves, file, title, svg })
        })
        .collect()
}

fn one(title: &str, groups: &[Seeds]) -> Result<String, ReportError> {
    let names: Vec<String> = groups.iter().map(name).collect();
    let legend = Legend { at: (70, 50), width: WIDTH - 90 };
    let top = 44 + Legend::ROW * Legend::rows(&names, legend.width);
    let (steps, scores) = ranges(groups);
    let size = (WIDTH.unsigned_abs(), (HEIGHT + top).unsigned_abs());
    draw(title, size, |sheet| {
        write(sheet, title, (16, 24), (16, INK), (HPos::Left, VPos::Center))?;
        legend.draw(sheet, &names, |(x, y), index| {
            let style = COLOURS[index % COLOURS.len()].stroke_width(3);
            Ok(sheet.draw(&PathElement::new([(x - 9, y), (x + 9, y)], style))?)
        })?;
        let mut chart = ChartBuilder::on(sheet)
            .margin_top(top)
            .margin_right(28)
            .margin_bottom(8)
            .margin_left(8)
            .set_label_area_size(LabelAreaPosition::Left, 64)
            .set_label_area_size(LabelAreaPosition::Bottom, 50)
            .build_cartesian_2d(steps, scores)?;
        chart
            .configure_mesh()
            .x_labels(8)
            .y_labels(8)
            .x_max_light_lines(1)
            .y_max_light_lines(1)
            .bold_line_style(GRID)
            .light_line_style(GRID)
            .axis_style(MUTED)
            .label_style(font(12).color(&MUTED))
            .x_label_formatter(&|step| thousands(*step))
            .y_label_formatter(&|score| format!("{score:.2}"))
            .x_desc("environment steps")
            .y_desc("score, 0 to 1")
            .axis_desc_style(font(13).color(&INK))
            .draw()?;
        for (index, seeds) in groups.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let range = seeds.mean.iter().zip(&seeds.range);
            let low = range.clone().map(|(at, (low, _))| (at.step as f64, *low));
            let high = range.map(|(at, (_, high))| (at.step as f64, *high));
            let band: Vec<(f64, f64)> = low.chain(high.rev()).collect();
            if band.len() > 2 {
                chart.draw_series([Polygon::new(band, colour.mix(0.15).filled())])?;
            }
            let is_one = seeds.runs.len() == 1;
            let thin =
                if is_one { colour.stroke_width(2) } else { colour.mix(0.55).stroke_width(1) };
            for run in &seeds.runs {
                chart.draw_series(
                    LineSeries::new(points(run), thin).point_size(u32::from(is_one)),
                )?;
            }
            chart.draw_series(LineSeries::new(points(&seeds.mean), colour.stroke_width(3)))?;
        }
        Ok(())
    })
}

fn points(curve: &[At]) -> impl Iterator<Item = (f64, f64)> + '_ {
    curve.iter().map(|at| (at.step as f64, at.score))
}

fn name(seeds: &Seeds) -> String {
    match seeds.runs.len() {
        1 => seeds.name.clone(),
        count => format!("{}* ({count} runs: mean, range)", seeds.name),
    }
}

/// Steps and scores that the axes reach over: never nothing.
fn ranges(groups: &[Seeds]) -> (Range<f64>, Range<f64>) {
    let all = || groups.iter().flat_map(|seeds| seeds.runs.iter().flatten());
    let steps_max = all().map(|at| at.step).max().unwrap_or(0).max(1);
    let low = all().map(|at| at.score).fold(1.0, f64::min);
    let high = all().map(|at| at.score).fold(0.0, f64::max);
    let margin = ((high - low) * 0.08).max(0.02);
    (0.0..steps_max as f64, (low - margin).max(0.0)..(high + margin).min(1.0))
}

fn thousands(step: f64) -> String {
    if step >= 10_000.0 { format!("{:.0}k", step / 1000.0) } else { format!("{step:.0}") }
}
