//! The options that changed, each in a row of its own, over the phases of the load.

use super::{BAND, COLOURS, Drawn, GRID, INK, MUTED, Plot, Section, cut, draw, font, slug, write};
use crate::report::ReportError;
use crate::report::settings::{Level, Timeline, Track, height, value_text};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

const WIDTH: i32 = 880;
const LEFT: i32 = 190;
const TOP: i32 = 84;
const ROW: i32 = 58;
/// Pixels that a letter takes, about.
const LETTER: i32 = 7;

pub(super) fn plot(index: usize, timeline: &Timeline) -> Result<Plot, ReportError> {
    let title = format!("Settings over time: {}", timeline.name());
    let number = index + 1;
    let file =
        format!("settings-{number}-{}-{}.svg", slug(&timeline.scenario), slug(&timeline.arm));
    let svg = one(&title, timeline)?;
    Ok(Plot { section: Section::Timelines(index), file, title, svg })
}

fn one(title: &str, timeline: &Timeline) -> Result<String, ReportError> {
    let rows = i32::try_from(timeline.tracks.len()).unwrap_or(0);
    let height_px = TOP + ROW * rows + 58;
    let until_s = timeline.until_s().max(timeline.from_s + 1.0);
    draw(title, (WIDTH.unsigned_abs(), height_px.unsigned_abs()), |sheet| {
        write(sheet, &cut(title, 100), (16, 24), (16, INK), (HPos::Left, VPos::Center))?;
        let mut chart = ChartBuilder::on(sheet)
            .margin_top(TOP)
            .margin_right(24)
            .margin_bottom(8)
            .set_label_area_size(LabelAreaPosition::Left, LEFT)
            .set_label_area_size(LabelAreaPosition::Bottom, 50)
            .build_cartesian_2d(timeline.from_s..until_s, 0.0..f64::from(rows))?;
        let spans = spans(timeline, until_s);
        let bands = spans.iter().enumerate().filter(|(index, _)| index % 2 == 1);
        chart.draw_series(bands.map(|(_, (_, from_s, to_s))| {
            Rectangle::new([(*from_s, 0.0), (*to_s, f64::from(rows))], BAND.filled())
        }))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .y_labels(0)
            .x_labels(12)
            .axis_style(MUTED)
            .x_label_style(font(12).color(&MUTED))
            .x_label_formatter(&|at_s| format!("{at_s:.0}"))
            .x_desc("seconds from the start of the score")
            .axis_desc_style(font(13).color(&INK))
            .draw()?;
        for (index, (name, from_s, to_s)) in spans.iter().enumerate() {
            let (x, _) = chart.backend_coord(&(*from_s, 0.0));
            let (end, _) = chart.backend_coord(&(*to_s, 0.0));
            // Neighbours share no line, so a name may reach over the next phase.
            let end =
                spans.get(index + 1).map_or(end, |next| chart.backend_coord(&(next.2, 0.0)).0);
            let chars = usize::try_from((end - x - 8) / LETTER).unwrap_or(0);
            sheet.draw(&PathElement::new([(x, TOP - 30), (x, TOP + ROW * rows)], GRID))?;
            if chars >= 3 {
                let y = TOP - 22 + 14 * i32::try_from(index % 2).unwrap_or(0);
                write(
                    sheet,
                    &cut(name, chars),
                    (x + 5, y),
                    (12, MUTED),
                    (HPos::Left, VPos::Center),
                )?;
            }
        }
        for (track, top) in timeline.tracks.iter().zip((0..).map(|row| TOP + ROW * row)) {
            sheet.draw(&PathElement::new([(LEFT, top + ROW), (WIDTH - 24, top + ROW)], GRID))?;
            let [name, range] = [20, 38].map(|down| (LEFT - 10, top + down));
            write(sheet, &track.option, name, (12, INK), (HPos::Right, VPos::Center))?;
            let values = track.range();
            write(sheet, &values, range, (11, MUTED), (HPos::Right, VPos::Center))?;
            let x_of = |at_s: f64| chart.backend_coord(&(at_s, 0.0)).0;
            steps(sheet, track, top, until_s, x_of)?;
        }
        Ok(())
    })
}

/// Name, begin and end of the lead-in and the phases.
fn spans(timeline: &Timeline, until_s: f64) -> Vec<(String, f64, f64)> {
    let mut spans = Vec::new();
    if timeline.from_s < 0.0 {
        spans.push(("lead-in".to_owned(), timeline.from_s, 0.0));
    }
    let mut from_s = 0.0;
    for phase in &timeline.phases {
        let to_s = from_s + f64::from(phase.duration_s);
        spans.push((phase.name.clone(), from_s, to_s.min(until_s)));
        from_s = to_s;
    }
    spans
}

/// An option as a staircase, with its values where there is room.
fn steps(
    sheet: &super::Area<'_>,
    track: &Track,
    top: i32,
    until_s: f64,
    x_of: impl Fn(f64) -> i32,
) -> Drawn {
    let heights: Vec<f64> =
        track.levels.iter().map(|level| height(track.knob, level.value)).collect();
    let low = heights.iter().copied().fold(f64::INFINITY, f64::min);
    let high = heights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let room = f64::from(ROW - 32);
    let y_of = |height: f64| {
        let share = if high > low { (height - low) / (high - low) } else { 0.5 };
        #[allow(clippy::cast_possible_truncation, reason = "pixels of a row")]
        let up = (share * room).round() as i32;
        top + ROW - 8 - up
    };
    let ends = track.levels.iter().skip(1).map(|level| level.at_s).chain([until_s]);
    let mut path = Vec::with_capacity(2 * heights.len());
    for ((Level { at_s, value }, end_s), height) in track.levels.iter().zip(ends).zip(&heights) {
        let (x, end, y) = (x_of(*at_s), x_of(end_s), y_of(*height));
        path.extend([(x, y), (end, y)]);
        let text = value_text(track.knob, *value);
        // On its own step only: across the next riser it could not be read.
        if LETTER * i32::try_from(text.len()).unwrap_or(i32::MAX) < end - x {
            write(sheet, &text, (x + 4, y - 4), (11, INK), (HPos::Left, VPos::Bottom))?;
        }
    }
    Ok(sheet.draw(&PathElement::new(path, COLOURS[0].stroke_width(2)))?)
}
