//! The twin's score over the real broker's.

use super::{BAND, COLOURS, GRID, INK, MUTED, PAPER, Plot, Section, cut, draw, font, write};
use crate::calibrate::check::{MEDIAN_MAX, P90_MAX, Point};
use crate::report::{Against, ReportError};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

const WIDTH: i32 = 620;
/// Height of all but the key.
const SQUARE: i32 = 690;
/// A line of the key.
const KEY: i32 = 18;
/// Points that are named below the plot.
const KEYS_MAX: usize = 10;

pub(super) fn plot(index: usize, against: &Against) -> Result<Plot, ReportError> {
    let title = format!("Twin against Mosquitto {}", against.checked.broker_version);
    let file = match index {
        0 => "twin-against-real.svg".to_owned(),
        _ => format!("twin-against-real-{}.svg", index + 1),
    };
    let svg = one(&title, against)?;
    Ok(Plot { section: Section::Twin(index), file, title, svg })
}

fn one(title: &str, against: &Against) -> Result<String, ReportError> {
    let fidelity = &against.fidelity;
    let figures = format!(
        "difference: median {:.3}, 90th percentile {:.3}; {} measurements",
        fidelity.difference_median, fidelity.difference_p90, fidelity.count
    );
    let keys = i32::try_from(far(against).len().min(KEYS_MAX)).unwrap_or(0);
    let key_px = if keys > 0 { KEY * keys + 20 } else { 0 };
    draw(title, (WIDTH.unsigned_abs(), (SQUARE + key_px).unsigned_abs()), |sheet| {
        write(sheet, title, (16, 24), (16, INK), (HPos::Left, VPos::Center))?;
        write(sheet, &figures, (16, 48), (13, MUTED), (HPos::Left, VPos::Center))?;
        let mut chart = ChartBuilder::on(sheet)
            .margin_top(86)
            .margin_right(24)
            .margin_bottom(8 + key_px)
            .margin_left(8)
            .set_label_area_size(LabelAreaPosition::Left, 56)
            .set_label_area_size(LabelAreaPosition::Bottom, 50)
            .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
        chart.draw_series([band(P90_MAX, BAND), band(MEDIAN_MAX, GRID)])?;
        chart
            .configure_mesh()
            .x_labels(11)
            .y_labels(11)
            .x_max_light_lines(1)
            .y_max_light_lines(1)
            .bold_line_style(GRID)
            .light_line_style(GRID)
            .axis_style(MUTED)
            .label_style(font(12).color(&MUTED))
            .x_label_formatter(&|score| format!("{score:.1}"))
            .y_label_formatter(&|score| format!("{score:.1}"))
            .x_desc("score on the real broker")
            .y_desc("score in the twin")
            .axis_desc_style(font(13).color(&INK))
            .draw()?;
        chart.draw_series(LineSeries::new([(0.0, 0.0), (1.0, 1.0)], MUTED.stroke_width(1)))?;
        for limit in [MEDIAN_MAX, P90_MAX] {
            let (x, y) = chart.backend_coord(&(1.0 - limit, 1.0));
            let text = format!("\u{b1}{limit}");
            write(sheet, &text, (x, y - 4), (12, MUTED), (HPos::Center, VPos::Bottom))?;
        }
        for point in &against.checked.points {
            let is_far = distance(point) > P90_MAX;
            let (x, y) = chart.backend_coord(&(point.real, point.twin));
            let colour = COLOURS[usize::from(is_far)];
            sheet.draw(&Circle::new((x, y), 5, PAPER.filled()))?;
            sheet.draw(&Circle::new((x, y), 4, colour.filled()))?;
        }
        let mut key_y = SQUARE + 16;
        for (number, point) in (1..).zip(far(against).into_iter().take(KEYS_MAX)) {
            let (x, y) = chart.backend_coord(&(point.real, point.twin));
            let (x, anchor) =
                if point.real > 0.95 { (x - 8, HPos::Right) } else { (x + 8, HPos::Left) };
            write(sheet, &number.to_string(), (x, y), (13, INK), (anchor, VPos::Center))?;
            let text = format!(
                "{number}  {}, {}: real {:.3}, twin {:.3}",
                point.scenario, point.settings, point.real, point.twin
            );
            write(sheet, &cut(&text, 80), (56, key_y), (12, INK), (HPos::Left, VPos::Center))?;
            key_y += KEY;
        }
        Ok(())
    })
}

fn distance(point: &Point) -> f64 {
    (point.real - point.twin).abs()
}

/// The points beyond the wider band, the farthest first.
pub(in crate::report) fn far(against: &Against) -> Vec<&Point> {
    let points = against.checked.points.iter();
    let mut far: Vec<&Point> = points.filter(|point| distance(point) > P90_MAX).collect();
    far.sort_by(|a, b| distance(b).total_cmp(&distance(a)));
    far
}

/// All that is at most `width` off the line, inside the square.
fn band(width: f64, colour: RGBColor) -> Polygon<(f64, f64)> {
    let far = 1.0 - width;
    let corners = vec![(0.0, 0.0), (0.0, width), (far, 1.0), (1.0, 1.0), (1.0, far), (width, 0.0)];
    Polygon::new(corners, colour.filled())
}
