//! The plots, each a whole SVG: drawn by `plotters`, dressed for light and dark.

mod curves;
mod fidelity;
mod scores;
mod settings;

pub(super) use fidelity::far;

use super::{Report, ReportError};
use maud::html;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A plot and the name of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plot {
    /// Which part of the report it shows.
    pub section: Section,
    /// File name, from a fixed alphabet whatever the loads are called.
    pub file: String,
    /// What it shows.
    pub title: String,
    /// The SVG.
    pub svg: String,
}

/// Parts of the page, with the index of what it shows in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// [`Report::scores`].
    Scores(usize),
    /// [`Report::curves`].
    Curves,
    /// [`Report::timelines`].
    Timelines(usize),
    /// [`Report::twin`].
    Twin(usize),
}

/// Every plot, in the order of the page.
pub(super) fn all(report: &Report) -> Result<Vec<Plot>, ReportError> {
    let mut plots = Vec::new();
    for (index, scores) in report.scores.iter().enumerate() {
        plots.extend(scores::plots(index, scores)?);
    }
    for (index, timeline) in report.timelines.iter().enumerate() {
        plots.push(settings::plot(index, timeline)?);
    }
    if let Some(curves) = &report.curves {
        plots.extend(curves::plots(curves)?);
    }
    for (index, against) in report.twin.iter().enumerate() {
        plots.push(fidelity::plot(index, against)?);
    }
    Ok(plots)
}

type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;
/// The library's errors are of writing to a file, which is not done.
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Ink, and what stands back.
const PAPER: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);
const INK: RGBColor = RGBColor(0x1B, 0x1F, 0x24);
const MUTED: RGBColor = RGBColor(0x57, 0x60, 0x6A);
const GRID: RGBColor = RGBColor(0xD8, 0xDE, 0xE4);
const BAND: RGBColor = RGBColor(0xF3, 0xF5, 0xF7);
/// Of Okabe and Ito, who chose them to be told apart by colour-blind people too; without the yellow
/// and the black, which paper or night swallow.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];
/// What becomes of a colour in the dark, where it is too dark itself.
const IN_THE_DARK: [(RGBColor, &str); 8] = [
    (PAPER, "#14171C"),
    (INK, "#E8EAED"),
    (MUTED, "#A4ADB8"),
    (GRID, "#343A43"),
    (BAND, "#1C2027"),
    (COLOURS[0], "#3F9FDB"),
    (COLOURS[1], "#F0843A"),
    (COLOURS[5], "#A5DCFA"),
];

/// Draws on a sheet of that size.
fn draw(
    title: &str,
    size: (u32, u32),
    drawing: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    let sheet = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = sheet.fill(&PAPER).map_err(Into::into).and_then(|()| drawing(&sheet));
    let drawn = drawn.and_then(|()| sheet.present().map_err(Into::into));
    drop(sheet);
    drawn
        .map_err(|error| ReportError::Draw { plot: title.to_owned(), reason: error.to_string() })?;
    Ok(dressed(title, &svg))
}

/// With a title for those who listen, and colours for the dark.
fn dressed(title: &str, svg: &str) -> String {
    let Some((head, rest)) = svg.split_once('>') else { return svg.to_owned() };
    let night: String = IN_THE_DARK
        .iter()
        .map(|(RGBColor(red, green, blue), dark)| {
            let light = format!("#{red:02X}{green:02X}{blue:02X}");
            format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}\n")
        })
        .collect();
    // Attribute selectors need no escapes in XML, and `>` does not occur.
    let style = format!(
        "<style>svg{{color-scheme:light dark}}\n@media (prefers-color-scheme:dark){{\n{night}}}</style>"
    );
    let title = html! { title { (title) } }.into_string();
    format!("{head} role=\"img\">\n{title}\n{style}{rest}")
}

/// Text at a place; `size` in pixels.
fn write(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    (size, colour): (i32, RGBColor),
    anchor: (HPos, VPos),
) -> Drawn {
    let style = font(size).color(&colour).pos(Pos::new(anchor.0, anchor.1));
    Ok(area.draw_text(text, &style, at)?)
}

/// The page's letters, `size` pixels high: the library takes a box that is larger by this factor.
fn font(size: i32) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", f64::from(size) * 1.24).into_font())
}

/// The text cut in its middle, so that both ends can be read.
fn cut(text: &str, chars_max: usize) -> String {
    let count = text.chars().count();
    if count <= chars_max {
        return text.to_owned();
    }
    let kept = chars_max.saturating_sub(1);
    let (front, back) = (kept.div_ceil(2), kept / 2);
    let front: String = text.chars().take(front).collect();
    let back: String = text.chars().skip(count - back).collect();
    format!("{front}\u{2026}{back}")
}

/// A name for a file: lower-case letters and digits, with single hyphens between them.
fn slug(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").chars().take(40).collect()
}

/// A mark for a series: colour and shape both tell it.
fn mark(area: &Area<'_>, (x, y): (i32, i32), index: usize) -> Drawn {
    const R: i32 = 5;
    let colour = COLOURS[index % COLOURS.len()];
    let solid = colour.filled();
    match index % 5 {
        0 => area.draw(&Circle::new((x, y), R, solid))?,
        1 => area.draw(&Rectangle::new([(x - R + 1, y - R + 1), (x + R - 1, y + R - 1)], solid))?,
        2 => {
            area.draw(&Polygon::new([(x, y - R), (x + R, y + R - 1), (x - R, y + R - 1)], solid))?
        }
        3 => area.draw(&Polygon::new(
            [(x, y - R - 1), (x + R + 1, y), (x, y + R + 1), (x - R - 1, y)],
            solid,
        ))?,
        _ => area.draw(&Circle::new((x, y), R - 1, colour.stroke_width(2)))?,
    }
    Ok(())
}

/// Marks or lines with their names, in as many rows as it takes; says where the next thing can stand.
struct Legend {
    at: (i32, i32),
    width: i32,
}

impl Legend {
    const ROW: i32 = 22;
    const CHARS_MAX: usize = 44;

    /// The room that a name takes with its mark. The letters' real width is not known here.
    fn room(name: &str) -> i32 {
        let chars = i32::try_from(name.chars().count().min(Self::CHARS_MAX)).unwrap_or(0);
        36 + 8 * chars
    }

    /// Rows of these names.
    fn rows(names: &[String], width: i32) -> i32 {
        let (mut x, mut rows) = (0, 1);
        for name in names {
            if x > 0 && x + Self::room(name) > width {
                (x, rows) = (0, rows + 1);
            }
            x += Self::room(name);
        }
        rows
    }

    fn draw(
        &self,
        area: &Area<'_>,
        names: &[String],
        mut symbol: impl FnMut((i32, i32), usize) -> Drawn,
    ) -> Drawn {
        let (left, mut y) = self.at;
        let mut x = left;
        for (index, name) in names.iter().enumerate() {
            if x > left && x + Self::room(name) > left + self.width {
                (x, y) = (left, y + Self::ROW);
            }
            symbol((x + 8, y), index)?;
            let place = (x + 22, y);
            write(area, &cut(name, Self::CHARS_MAX), place, (13, INK), (HPos::Left, VPos::Center))?;
            x += Self::room(name);
        }
        Ok(())
    }
}
