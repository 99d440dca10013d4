//! The page: one HTML file that asks for nothing else. `maud` escapes every text; only the plots,
//! which are escaped already, go in as they are.

use super::curves::Seeds;
use super::data::label;
use super::plots::{Plot, Section, far};
use super::scores::{Cell, DEFAULT, Scores};
use super::settings::Timeline;
use super::{Against, Report, shown};
use crate::calibrate::check::{MEDIAN_MAX, P90_MAX};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("page.css");
/// Nothing from elsewhere, no scripts: whatever a name in a file might try.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

pub(super) fn html(report: &Report, plots: &[Plot]) -> String {
    let of = |section: Section| plots.iter().filter(move |plot| plot.section == section);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { "BrokerTuner report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "BrokerTuner report" }
                @for (index, scores) in report.scores.iter().enumerate() {
                    (self::scores(scores, of(Section::Scores(index))))
                }
                @if !report.timelines.is_empty() {
                    h2 { "Settings over time" }
                    p {
                        "What was in force in the broker, of the options that changed. "
                        "“no line” leaves an option to the broker's own configuration; it is drawn "
                        "where Mosquitto's default stands. The score begins at 0 s."
                    }
                    @for (index, timeline) in report.timelines.iter().enumerate() {
                        (self::timeline(timeline, of(Section::Timelines(index))))
                    }
                }
                @if let Some(curves) = &report.curves {
                    h2 { "Learning" }
                    @for plot in of(Section::Curves) { (figure(plot)) }
                    (ends("Last validation", &curves.validation))
                    (ends("Last training episodes", &curves.episodes))
                }
                @for (index, against) in report.twin.iter().enumerate() {
                    (self::twin(against, of(Section::Twin(index))))
                }
                (left_out(report))
                footer { "host " (env!("CARGO_PKG_VERSION")) " report" }
            }
        }
    }
    .into_string()
}

fn figure(plot: &Plot) -> Markup {
    html! {
        figure {
            div class="plot" { (PreEscaped(&plot.svg)) }
            figcaption { "As a file: " a href=(plot.file) { (plot.file) } }
        }
    }
}

fn scores<'p>(scores: &Scores, plots: impl Iterator<Item = &'p Plot>) -> Markup {
    html! {
        h2 { "Scores " (scores.bench()) }
        p class="note" {
            "From " (list(&scores.files.iter().map(|file| shown(file)).collect::<Vec<_>>())) "."
        }
        p {
            "The score is the share of deliveries within their deadline. Marks are means over the "
            "repeats that count, lines their 95 % intervals by Student's t (two repeats at the least, of "
            "untrained actors two actors; what the twin plays again has none)."
        }
        @for plot in plots { (figure(plot)) }
        h3 { "Means " (scores.common()) }
        div class="wide" {
            table {
                thead { tr { th { "arm" } th { "mean score" } th { "headroom" } } }
                tbody {
                    @for mean in &scores.means {
                        tr {
                            th { (mean.arm) }
                            td { (number(mean.mean)) }
                            td { (percent(mean.headroom)) }
                        }
                    }
                }
            }
        }
        (headroom_note(scores))
        h3 { "By load" }
        div class="wide" {
            table {
                thead { tr { th { "load" } @for arm in &scores.arms { th { (arm) } } } }
                tbody {
                    @for scenario in &scores.scenarios {
                        tr {
                            th { (scenario) }
                            @for arm in &scores.arms { td { (cell(scores.cell(scenario, arm))) } }
                        }
                    }
                }
            }
        }
    }
}

fn headroom_note(scores: &Scores) -> Markup {
    html! {
        p class="note" {
            @match &scores.best {
                Some(best) => {
                    "Headroom: (mean of the arm − mean of " (DEFAULT) ") / (mean of " (best)
                    " − mean of " (DEFAULT) "). 0 % is no better than the default, 100 % as good as "
                    "settings that were searched for each load. It needs both arms on the same "
                    "loads, and a gain between them."
                }
                None => {
                    "No headroom: there is no arm with settings searched for each load "
                    "(host search --each, then host evaluate --per-site)."
                }
            }
        }
    }
}

fn cell(cell: Option<&Cell>) -> Markup {
    let Some(cell) = cell else { return html! { "–" } };
    html! {
        (number(cell.mean))
        @if let Some(half) = cell.half_95 { " ± " (format!("{half:.3}")) }
        " " small {
            "n " (cell.repeats)
            @if cell.void > 0 { ", " (cell.void) " void" }
            @if cell.uncapped > 0 { ", " (cell.uncapped) " uncapped" }
        }
    }
}

fn timeline<'p>(timeline: &Timeline, plots: impl Iterator<Item = &'p Plot>) -> Markup {
    html! {
        h3 { (timeline.name()) }
        p class="note" {
            "Score " (number(timeline.score)) ", " (timeline.restarts) " restarts of the broker."
        }
        @for plot in plots { (figure(plot)) }
    }
}

/// Where curves end.
fn ends(title: &str, groups: &[Seeds]) -> Markup {
    html! {
        @if !groups.is_empty() {
            h3 { (title) }
            div class="wide" {
                table {
                    thead {
                        tr { th { "runs" } th { "number" } th { "steps" } th { "score" } th { "lowest" } th { "highest" } }
                    }
                    tbody {
                        @for seeds in groups {
                            @let end = seeds.end();
                            tr {
                                th { (seeds.name) }
                                td { (seeds.runs.len()) }
                                td { (end.steps) }
                                td { (number(end.mean)) }
                                td { (number(end.lowest)) }
                                td { (number(end.highest)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn twin<'p>(against: &Against, plots: impl Iterator<Item = &'p Plot>) -> Markup {
    let fidelity = &against.fidelity;
    let far = far(against);
    html! {
        h2 { "Twin against real" }
        p {
            "Each mark is a load with settings that were tried in both. Difference of scores: median "
            (format!("{:.3}", fidelity.difference_median)) " (at most " (MEDIAN_MAX)
            " is asked for), 90th percentile " (format!("{:.3}", fidelity.difference_p90))
            " (at most " (P90_MAX) "), over " (fidelity.count) " measurements. Settings ordered alike: "
            (format!("{:.1}", 100.0 * fidelity.ordered_share)) " % of " (fidelity.pairs)
            " pairs. The twin's best settings are " (format!("{:.3}", fidelity.loss_max))
            " below the real best at most, on " (fidelity.loss_scenario) "."
            @if against.checked.missing > 0 {
                " Not measured yet, or void: " (against.checked.missing) "."
            }
        }
        @for plot in plots { (figure(plot)) }
        @if !far.is_empty() {
            h3 { "Farther off than " (P90_MAX) }
            div class="wide" {
                table {
                    thead { tr { th { "load" } th { "settings" } th { "real" } th { "twin" } } }
                    tbody {
                        @for point in &far {
                            tr {
                                th { (point.scenario) }
                                th { (point.settings) }
                                td { (number(Some(point.real))) }
                                td { (number(Some(point.twin))) }
                            }
                        }
                    }
                }
            }
        }
        p class="note" { "From " (shown(&against.file)) "." }
    }
}

fn left_out(report: &Report) -> Markup {
    html! {
        @if !report.left_out.is_empty() {
            h2 { "Left out" }
            ul {
                @for left_out in &report.left_out {
                    li { (label(&left_out.what)) ": " (label(&left_out.why)) }
                }
            }
        }
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.0} %", 100.0 * share))
}

fn list(names: &[String]) -> String {
    names.join(", ")
}
