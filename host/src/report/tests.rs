#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::evaluate::{Identity, Record};
use crate::load::LoadResult;
use crate::trial::{InForce, Outcome, PhaseSpan};
use std::fs;
use tempfile::TempDir;

/// The page has every plot in it; one is kept as a file as well.
const GOLDEN: [&str; 2] = ["index.html", "scores.svg"];
const GOLDEN_FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/report/golden");

/// A measurement; the digests are of what is named.
fn record(scenario: &str, arm: &str, repeat: u32, score: f64) -> Record {
    Record {
        scenario: scenario.to_owned(),
        arm: arm.to_owned(),
        actor: None,
        repeat,
        seed: u64::from(repeat) + 1,
        score: Some(score),
        is_void: false,
        broker_version: "2.0.21".to_owned(),
        identity: Identity {
            scenario: scenario.to_owned(),
            setter: arm.to_owned(),
            is_per_load: arm == "search",
            rules: "rules".to_owned(),
        },
        outcome: Outcome {
            load: LoadResult { seconds: 90, ..LoadResult::default() },
            agent: None,
            settings_conf: String::new(),
            restarts: 0,
            is_uncapped: false,
            cpu_share: None,
            rss_bytes_end: None,
            phases: Vec::new(),
            timeline: Vec::new(),
        },
    }
}

/// One in which an agent changed something.
fn tuned(scenario: &str, arm: &str, score: f64) -> Record {
    let mut record = record(scenario, arm, 0, score);
    let phase = |(name, duration_s): (&str, u32)| PhaseSpan { name: name.to_owned(), duration_s };
    record.outcome.phases = [("night", 30), ("shift", 60)].map(phase).to_vec();
    let step = |(at_s, conf): (f64, &str)| InForce { at_s, settings_conf: conf.to_owned() };
    let wide = "max_inflight_messages 1000\nmax_inflight_bytes 65536\n";
    record.outcome.timeline =
        [(-20.0, ""), (3.0, wide), (42.0, "max_inflight_messages 100\n")].map(step).to_vec();
    record.outcome.restarts = 2;
    record
}

fn write_records(path: &Path, records: &[Record]) {
    let lines = records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n");
    fs::write(path, lines.collect::<String>()).unwrap();
}

/// A folder as `host evaluate`, `train` and `calibrate` leave it, small.
fn runs(names: [&str; 2]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut records = Vec::new();
    for (scenario, level) in names.into_iter().zip([0.2, 0.5]) {
        for repeat in 0..3 {
            let score = level + 0.02 * f64::from(repeat);
            records.push(record(scenario, "default", repeat, score));
            records.push(record(scenario, "search", repeat, score + 0.4));
        }
        records.push(tuned(scenario, names[0], level + 0.3));
    }
    write_records(&dir.path().join("evaluate.jsonl"), &records);
    for (seed, score) in [(1, 0.6), (2, 0.7)] {
        let run = dir.path().join(format!("train-{seed}"));
        fs::create_dir(&run).unwrap();
        let rows = format!("step,wall_s,score\n0,1.0,0.3\n100,2.0,{score}\n");
        fs::write(run.join("validation.csv"), rows).unwrap();
        let row = |step, env, score| format!("{step},1.0,1,{env},x,9,1.0,{score},0,0,0,0.1,9,9\n");
        let rows = crate::logs::PROGRESS_COLUMNS.join(",")
            + "\n"
            + &row(10, "0", "0.2")
            + &row(20, "0", "")
            + &row(30, "0", "0.4")
            + &row(31, "", "");
        fs::write(run.join("progress.csv"), rows).unwrap();
    }
    let points = serde_json::json!([
        {"scenario": names[0], "settings": "default", "real": 0.50, "twin": 0.52},
        {"scenario": names[0], "settings": names[1], "real": 0.90, "twin": 0.70},
    ]);
    let checked = serde_json::json!({"version": 1, "broker_version": "2.0.21", "points": points});
    fs::write(dir.path().join("calibration.check.json"), checked.to_string()).unwrap();
    dir
}

fn read(dir: &Path) -> Result<Report, ReportError> {
    Report::read(Found::below(&[dir.to_owned()])?, &Choice::default())
}

/// What is written for a folder, by name.
fn written(dir: &Path) -> Vec<(String, String)> {
    let report = read(dir).unwrap();
    let plots = report.plots().unwrap();
    let page = report.page(&plots);
    let mut files: Vec<_> = plots.into_iter().map(|plot| (plot.file, plot.svg)).collect();
    files.push(("index.html".to_owned(), page));
    // Neither where it lay nor which version made it.
    let version = concat!("host ", env!("CARGO_PKG_VERSION"), " report");
    for (_, text) in &mut files {
        *text = text.replace(&dir.display().to_string(), "runs").replace(version, "host report");
    }
    files
}

fn golden_files() -> Vec<(String, String)> {
    let mut files = written(runs(["fanout", "mixed-day"]).path());
    files.retain(|(name, _)| GOLDEN.contains(&name.as_str()));
    files.sort();
    files
}

#[test]
fn golden() {
    let files = golden_files();
    assert_eq!(files.len(), GOLDEN.len());
    for (name, text) in files {
        let golden = fs::read_to_string(format!("{GOLDEN_FOLDER}/{name}")).unwrap();
        assert!(text == golden, "{name} is not the golden file, but:\n{text}");
    }
}

#[test]
#[ignore = "writes src/report/golden: by hand, after a look at the result"]
fn renew_golden_files() {
    for (name, text) in golden_files() {
        fs::write(format!("{GOLDEN_FOLDER}/{name}"), text).unwrap();
    }
}

/// Asserts that every `<` begins a tag that this program writes, and every `&` an entity.
fn assert_no_strange_markup(name: &str, text: &str) {
    const TAGS: [&str; 34] = [
        "!DOCTYPE",
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "div",
        "figure",
        "figcaption",
        "a",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "small",
        "ul",
        "li",
        "footer",
        "svg",
        "text",
        "rect",
        "line",
        "circle",
        "polygon",
        "polyline",
        "path",
        "g",
    ];
    for after in text.split('<').skip(1) {
        let tag: String = after
            .trim_start_matches('/')
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '!')
            .collect();
        assert!(TAGS.contains(&tag.as_str()), "{name}: <{after}");
        let inside = after.split('>').next().unwrap();
        assert!(!inside.contains("onerror=") && !inside.contains("src="), "{name}: <{inside}");
    }
    for after in text.split('&').skip(1) {
        let entity = after.split(';').next().unwrap();
        assert!(["amp", "lt", "gt", "quot", "apos"].contains(&entity), "{name}: &{entity}");
    }
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{name}");
    assert!(!text.contains('\u{202e}'), "{name}");
}

#[test]
fn texts_of_files_stay_texts() {
    let hostile = [
        "\"><img src=x onerror=alert(1)>\u{202e}\u{1b}[2J\u{0}",
        "</svg></style><script>alert('1')</script>&nbsp;<!--]]>",
    ];
    let dir = runs(hostile);
    let files = written(dir.path());
    assert_eq!(files.len(), 7, "all sections are there");
    for (name, text) in &files {
        assert_no_strange_markup(name, text);
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c)), "{name}");
    }
    let page = &files.last().unwrap().1;
    assert!(page.contains("&lt;script&gt;alert('1')&lt;/script&gt;&amp;nbsp;"), "it is shown");
}

#[test]
fn the_page_asks_for_nothing_from_elsewhere() {
    let files = written(runs(["a", "b"]).path());
    let (names, page) = (&files[..files.len() - 1], &files.last().unwrap().1);
    for word in ["src=", "@import", "url(", "<script", "<link", "<iframe"] {
        assert!(!page.contains(word), "{word}");
    }
    let without_names = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    assert!(!without_names.contains("://"));
    for link in page.split("href=\"").skip(1) {
        let target = link.split('"').next().unwrap();
        assert!(names.iter().any(|(name, _)| name == target), "{target}");
    }
    assert!(page.contains("prefers-color-scheme:dark") && page.contains("width=device-width"));
}

#[test]
fn what_is_not_there_is_left_out_and_said() {
    let dir = runs(["a", "b"]);
    let everything = read(dir.path()).unwrap();
    assert_eq!(everything.left_out, []);
    assert_eq!((everything.scores.len(), everything.timelines.len()), (1, 2));
    fs::remove_file(dir.path().join("evaluate.jsonl")).unwrap();
    fs::remove_file(dir.path().join("calibration.check.json")).unwrap();
    let report = read(dir.path()).unwrap();
    let missing: Vec<&str> = report.left_out.iter().map(|out| out.what.as_str()).collect();
    assert_eq!(missing, ["scores", "settings over time", "twin against real"]);
    let page = report.page(&report.plots().unwrap());
    assert!(!page.contains("<h2>Scores") && !page.contains("<h2>Twin"), "{page}");
    for seed in [1, 2] {
        fs::remove_dir_all(dir.path().join(format!("train-{seed}"))).unwrap();
    }
    fs::write(dir.path().join("evaluations.jsonl"), "{\"world\":\"x\"}\n").unwrap();
    let message = read(dir.path()).unwrap_err().to_string();
    for words in ["nothing to report", "evaluations.jsonl: its first line is no", "host evaluate"] {
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn files_below_a_folder_are_found_by_name_and_once() {
    let dir = runs(["a", "b"]);
    let at = |name: &str| dir.path().join(name);
    let lines = fs::read(at("evaluate.jsonl")).unwrap();
    fs::write(at("calibration.check.jsonl"), &lines).unwrap();
    fs::write(at("empty.jsonl"), "").unwrap();
    fs::write(at("notes.txt"), "none").unwrap();
    // A circle.
    std::os::unix::fs::symlink(dir.path(), at("train-1/up")).unwrap();
    let paths = [dir.path().to_owned(), at("evaluate.jsonl"), at("train-2/progress.csv")];
    let found = Found::below(&paths).unwrap();
    assert_eq!(found.results, [at("evaluate.jsonl")]);
    assert_eq!(found.runs, [at("train-1"), at("train-2")]);
    assert_eq!(found.checks, [at("calibration.check.json")]);
    assert_eq!(found.left_out.len(), 1);
    // Named, it is what was asked for.
    assert_eq!(Found::below(&[at("calibration.check.jsonl")]).unwrap().results.len(), 1);
    for wrong in ["notes.txt", "missing.jsonl"] {
        let message = Found::below(&[at(wrong)]).unwrap_err().to_string();
        assert!(message.contains(wrong), "{message}");
    }
}

#[test]
fn garbled_files_are_refused_by_name_and_line() {
    let sound = serde_json::to_value(tuned("a", "m", 0.5)).unwrap();
    let with = |path: &str, value: serde_json::Value| {
        let mut record = sound.clone();
        *record.pointer_mut(path).unwrap() = value;
        format!("{sound}\n{record}\n")
    };
    let nine: f64 = 9e9;
    let logs = crate::logs::PROGRESS_COLUMNS.join(",");
    let point = |real: &str| {
        format!(
            "{{\"version\":1,\"broker_version\":\"2\",\"points\":[\n{{\"scenario\":\"a\",\
             \"settings\":\"b\",\"real\":{real},\"twin\":0.1}}]}}"
        )
    };
    for (name, text, line, words) in [
        ("r.jsonl", format!("{sound}\n{{\"scenario\":\n"), 2, "EOF"),
        ("r.jsonl", with("/score", 1.5.into()), 2, "score 1.5 is not in 0..=1"),
        ("r.jsonl", with("/outcome/load/tally/expected", u64::MAX.into()), 2, "expected"),
        ("r.jsonl", with("/outcome/timeline/2/at_s", nine.into()), 2, "a time beyond"),
        ("r.jsonl", with("/outcome/timeline/0/at_s", 50.0.into()), 2, "not in order"),
        (
            "r.jsonl",
            with("/outcome/timeline/1/settings_conf", "listener 1\n".into()),
            2,
            "timeline",
        ),
        ("validation.csv", "step,wall_s,score\n1,1,0.5\n2,1,NaN\n".to_owned(), 3, "score NaN"),
        ("validation.csv", "step,wall_s,score\n1,1\n".to_owned(), 2, "no row of host train"),
        ("validation.csv", "a,b,c\n1,1,0.5\n".to_owned(), 2, "missing field `step`"),
        ("progress.csv", format!("{logs}\n1,inf,0,,,0,0,,0,0,0,0,0,0\n"), 2, "wall_s inf"),
        ("c.check.json", point("2.0"), 1, "point 1: real 2 is not in 0..=1"),
        ("c.check.json", point("x"), 2, "expected value"),
        (
            "c.check.json",
            "{\"version\":1,\"broker_version\":\"2\",\"points\":[]}".to_owned(),
            1,
            "no points",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        let found = Found::below(&[path]).unwrap();
        let message = Report::read(found, &Choice::default()).unwrap_err().to_string();
        for word in [name, &format!(": line {line}: "), words, "move the f"] {
            assert!(message.contains(word), "{word}\n{message}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    fs::write(&path, b"{}\n\xff\n").unwrap();
    let message = Results::read(&path).unwrap_err().to_string();
    assert!(message.contains("r.jsonl: line 2: not UTF-8"), "{message}");
    fs::File::create(&path).unwrap().set_len((256 << 20) + 1).unwrap();
    let message = Results::read(&path).unwrap_err().to_string();
    assert!(message.contains("r.jsonl: larger than 256 MiB"), "{message}");
}

#[test]
fn an_unfinished_line_and_an_older_version_are_no_faults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evaluate.jsonl");
    let mut old = serde_json::to_value(record("a", "default", 0, 0.5)).unwrap();
    let outcome = old["outcome"].as_object_mut().unwrap();
    assert!(outcome.remove("timeline").is_some() && outcome.remove("phases").is_some());
    fs::write(&path, format!("{old}\n{{\"scenario\":\"a\",\"ar")).unwrap();
    let report = read(dir.path()).unwrap();
    assert_eq!(report.scores[0].cells.len(), 1);
    let left_out: Vec<&str> = report.left_out.iter().map(|out| out.why.as_str()).collect();
    assert!(left_out[0].starts_with("its last line is not finished"), "{left_out:?}");
    assert!(left_out[1].starts_with("the results are of an earlier version"), "{left_out:?}");
}

#[test]
fn means_are_over_common_loads_and_headroom_by_hand() {
    let mut records = Vec::new();
    for (scenario, scores) in [("a", [0.2, 0.6, 1.0, 0.9]), ("b", [0.4, 0.6, 0.8, 0.3])] {
        for (arm, score) in ["default", "model", "search", "random"].into_iter().zip(scores) {
            records.push(record(scenario, arm, 0, score));
        }
    }
    // Only of some arms: not in the means. Void: not in anything.
    records.push(record("c", "default", 0, 1.0));
    let mut void = record("a", "model", 1, 0.0);
    void.is_void = true;
    records.push(void);
    let dir = tempfile::tempdir().unwrap();
    write_records(&dir.path().join("evaluate.jsonl"), &records);
    let scores = read(dir.path()).unwrap().scores.remove(0);
    assert_eq!(scores.scenarios_common, ["a", "b"]);
    assert_eq!(scores.best.as_deref(), Some("search"));
    let near = |found: Option<f64>, wanted: f64| found.is_some_and(|f| (f - wanted).abs() < 1e-9);
    // default 0.3, model 0.6, search 0.9, random 0.6.
    for (mean, (value, headroom)) in
        scores.means.iter().zip([(0.3, 0.0), (0.6, 0.5), (0.9, 1.0), (0.6, 0.5)])
    {
        assert!(near(mean.mean, value) && near(mean.headroom, headroom), "{mean:?}");
    }
    let cell = scores.cell("a", "model").unwrap();
    assert_eq!((cell.repeats, cell.void, cell.half_95), (1, 1, None));
    let found = Found::below(&[dir.path().to_owned()]).unwrap();
    let choice = Choice { best: Some("nobody".to_owned()), ..Choice::default() };
    let message = Report::read(found, &choice).unwrap_err().to_string();
    assert!(
        message.contains("--best \"nobody\"") && message.contains("default, model"),
        "{message}"
    );
}

#[test]
fn only_what_can_be_compared_shares_a_table() {
    let results =
        |name: &str, records: Vec<Record>| Results { path: name.into(), records, is_torn: false };
    let first = || vec![record("a", "default", 0, 0.5), record("a", "m", 0, 0.6)];
    let mut twin = first();
    twin.iter_mut().for_each(|record| record.identity.rules = "of the twin".to_owned());
    let mut other_model = record("b", "m", 0, 0.7);
    other_model.identity.setter = "another".to_owned();
    let mut quick = record("a", "default", 0, 0.5);
    quick.identity.scenario = "cut short".to_owned();
    let more = record("b", "default", 0, 0.5);
    let groups = scores::group(vec![
        results("first", first()),
        results("copy", first()),
        results("twin", twin),
        results("other model", vec![other_model]),
        results("quick", vec![quick]),
        results("more", vec![more]),
    ]);
    let shape: Vec<(usize, usize)> =
        groups.iter().map(|group| (group.files.len(), group.records.len())).collect();
    // The other model is of a load that only its own file has, but its name is taken; what comes
    // later joins the first that it fits.
    assert_eq!(shape, [(3, 3), (1, 2), (2, 2)]);
}

#[test]
fn a_measurement_counts_once_and_a_void_one_gives_way() {
    let results = |records: Vec<Record>| Results { path: "r".into(), records, is_torn: false };
    let void = Record { is_void: true, score: None, ..record("a", "m", 0, 0.0) };
    let lone = Record { is_void: true, score: None, ..record("b", "m", 0, 0.0) };
    let (one, other) = (record("a", "m", 0, 0.6), record("a", "m", 0, 0.7));
    let all = vec![void, one.clone(), one, other, lone];
    let groups = scores::group(vec![results(all)]);
    let scores: Vec<Option<f64>> = groups[0].records.iter().map(|record| record.score).collect();
    assert_eq!(scores, [Some(0.6), Some(0.7), None], "the same run on another day is another run");
    let at = |capacity: f64| {
        let mut record = record("c", "m", 0, 0.5);
        record.outcome.load.capacity_msgs_per_s = Some(capacity);
        results(vec![record])
    };
    assert_eq!(scores::group(vec![at(60_000.0), at(90_000.0)]).len(), 2);
}

#[test]
fn timelines_are_of_the_loads_asked_for() {
    let dir = runs(["a", "b"]);
    let choose = |name: &str| {
        let found = Found::below(&[dir.path().to_owned()]).unwrap();
        Report::read(found, &Choice { scenarios: vec![name.to_owned()], ..Choice::default() })
    };
    let report = choose("b").unwrap();
    assert_eq!(report.timelines.len(), 1);
    let timeline = &report.timelines[0];
    let tracks: Vec<(&str, Vec<Option<u64>>)> = timeline
        .tracks
        .iter()
        .map(|track| (track.option.as_str(), track.levels.iter().map(|l| l.value).collect()))
        .collect();
    assert_eq!(
        tracks,
        [
            ("max_inflight_messages", vec![None, Some(1000), Some(100)]),
            ("max_inflight_bytes", vec![None, Some(65536), None]),
        ]
    );
    assert!((timeline.until_s() - 90.0).abs() < 1e-9);
    let message = choose("c").unwrap_err().to_string();
    assert!(
        message.contains("--scenario \"c\"") && message.contains("there are: a, b"),
        "{message}"
    );
}
