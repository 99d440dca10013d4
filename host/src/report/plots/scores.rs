//! A row for each load, a mark for each arm, its 95 % interval as a line.

use super::{
    BAND, COLOURS, Drawn, GRID, INK, Legend, MUTED, Plot, Section, cut, draw, font, mark, write,
};
use crate::report::ReportError;
use crate::report::scores::Scores;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

const WIDTH: i32 = 880;
/// Room for the names of loads.
const LEFT: i32 = 210;
const NAME_CHARS_MAX: usize = 28;
/// Rows of one plot: more are more plots.
const ROWS_MAX: usize = 24;
/// Between the marks of a row.
const PITCH: i32 = 11;

pub(super) fn plots(index: usize, scores: &Scores) -> Result<Vec<Plot>, ReportError> {
    let pages = scores.scenarios.chunks(ROWS_MAX).enumerate();
    pages
        .map(|(page, scenarios)| {
            let title = format!(
                "Score per load and arm, {}{}",
                scores.bench(),
                if page > 0 { format!(", part {}", page + 1) } else { String::new() }
            );
            let file = match (index, page) {
                (0, 0) => "scores.svg".to_owned(),
                _ => format!("scores-{}-{}.svg", index + 1, page + 1),
            };
            let svg = one(&title, scores, scenarios)?;
            Ok(Plot { section: Section::Scores(index), file, title, svg })
        })
        .collect()
}

fn one(title: &str, scores: &Scores, scenarios: &[String]) -> Result<String, ReportError> {
    let [arms, rows] = [scores.arms.len(), scenarios.len()].map(|n| i32::try_from(n).unwrap_or(0));
    let row = (PITCH * arms + 12).max(28);
    let legend = Legend { at: (LEFT, 50), width: WIDTH - LEFT - 20 };
    let top = 44 + Legend::ROW * Legend::rows(&scores.arms, legend.width);
    let height = top + row * rows + 58;
    draw(title, (WIDTH.unsigned_abs(), height.unsigned_abs()), |sheet| {
        write(sheet, title, (16, 24), (16, INK), (HPos::Left, VPos::Center))?;
        legend.draw(sheet, &scores.arms, |at, arm| mark(sheet, at, arm))?;
        let mut chart = ChartBuilder::on(sheet)
            .margin_top(top)
            .margin_right(24)
            .margin_bottom(8)
            .set_label_area_size(LabelAreaPosition::Left, LEFT)
            .set_label_area_size(LabelAreaPosition::Bottom, 50)
            .build_cartesian_2d(0.0..1.0, 0.0..f64::from(rows))?;
        let band = |index: usize| {
            let top = f64::from(rows) - index as f64;
            Rectangle::new([(0.0, top), (1.0, top - 1.0)], BAND.filled())
        };
        chart.draw_series((0..scenarios.len()).step_by(2).map(band))?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_labels(11)
            .x_max_light_lines(1)
            .bold_line_style(GRID)
            .light_line_style(GRID)
            .axis_style(MUTED)
            .x_label_style(font(12).color(&MUTED))
            .x_label_formatter(&|score| format!("{score:.1}"))
            .x_desc("score: share of deliveries within their deadline, 0 to 1")
            .axis_desc_style(font(13).color(&INK))
            .draw()?;
        for (index, scenario) in scenarios.iter().enumerate() {
            let middle = f64::from(rows) - index as f64 - 0.5;
            let (x, y) = chart.backend_coord(&(0.0, middle));
            let name = cut(scenario, NAME_CHARS_MAX);
            write(sheet, &name, (x - 10, y), (13, INK), (HPos::Right, VPos::Center))?;
            let first = y - PITCH * (arms - 1) / 2;
            for (arm, at_y) in
                (0..).map(|arm| first + PITCH * arm).enumerate().take(scores.arms.len())
            {
                let x_of = |score: f64| chart.backend_coord(&(score, middle)).0;
                dot(sheet, scores, (scenario, arm), at_y, x_of)?;
            }
        }
        Ok(())
    })
}

/// The mark of an arm on a load, on its interval.
fn dot(
    sheet: &super::Area<'_>,
    scores: &Scores,
    (scenario, arm): (&str, usize),
    y: i32,
    x_of: impl Fn(f64) -> i32,
) -> Drawn {
    let Some(cell) = scores.cell(scenario, &scores.arms[arm]) else { return Ok(()) };
    let Some(mean) = cell.mean else { return Ok(()) };
    if let Some(half) = cell.half_95 {
        let [low, high] = [mean - half, mean + half].map(|end| x_of(end.clamp(0.0, 1.0)));
        let style = COLOURS[arm % COLOURS.len()].stroke_width(2);
        sheet.draw(&PathElement::new([(low, y), (high, y)], style))?;
        for end in [low, high] {
            sheet.draw(&PathElement::new([(end, y - 3), (end, y + 3)], style))?;
        }
    }
    mark(sheet, (x_of(mean), y), arm)
}
