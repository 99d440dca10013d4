//! TOML to [`Config`], gathering every fault with its line instead of stopping at the first.

use std::collections::BTreeMap;

use brokertuner_core::{KNOBS, Knob};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::section::Section;
use super::{Config, Fault, KnobRules, check};

const SECTIONS: [&str; 10] =
    ["broker", "pid", "control", "helper", "model", "targets", "decide", "agent", "http", "knobs"];

/// Faults so far, and the line of every option that was given.
pub(super) struct Reader<'t> {
    text: &'t str,
    faults: Vec<Fault>,
    lines: BTreeMap<String, usize>,
}

impl Config {
    /// Reads and checks the text of a configuration file.
    ///
    /// # Errors
    /// Every fault, in the file's order.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let mut reader = Reader { text, faults: Vec::new(), lines: BTreeMap::new() };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map(|span| line_at(text, span.start));
            let what = format!("{}; see https://toml.io for the syntax", error.message());
            reader.faults.push(Fault { line, key: String::new(), what });
        }
        let mut config = Self::default();
        for (name, value) in table.into_inner() {
            let line = line_at(text, name.span().start);
            config.read_section(&mut reader, name.get_ref(), line, value);
        }
        // A value that was already said to be wrong is not checked, it stands at its default.
        check::check(&config, &mut reader);
        reader.faults.sort_by_key(|fault| fault.line);
        if reader.faults.is_empty() { Ok(config) } else { Err(reader.faults) }
    }

    fn read_section(
        &mut self,
        reader: &mut Reader<'_>,
        name: &str,
        line: usize,
        value: Spanned<DeValue<'_>>,
    ) {
        let DeValue::Table(table) = value.into_inner() else {
            return reader.fault(Some(line), name, unknown(name, &SECTIONS, "section"));
        };
        match name {
            "broker" => reader.section(name, table, &mut self.broker),
            "pid" => reader.section(name, table, &mut self.pid),
            "control" => reader.section(name, table, &mut self.control),
            "helper" => reader.section(name, table, &mut self.helper),
            "model" => reader.section(name, table, &mut self.model),
            "targets" => reader.section(name, table, &mut self.targets),
            "decide" => reader.section(name, table, &mut self.decide),
            "agent" => reader.section(name, table, &mut self.agent),
            "http" => reader.section(name, table, &mut self.http),
            "knobs" => self.read_knobs(reader, table),
            _ => reader.fault(Some(line), name, unknown(name, &SECTIONS, "section")),
        }
    }

    fn read_knobs(&mut self, reader: &mut Reader<'_>, table: DeTable<'_>) {
        for (key, value) in table {
            let line = line_at(reader.text, key.span().start);
            let path = format!("knobs.{}", key.get_ref());
            let Some(knob) = Knob::from_key(key.get_ref()) else {
                let keys = KNOBS.each_ref().map(|spec| spec.key);
                reader.fault(Some(line), &path, unknown(key.get_ref(), &keys, "option"));
                continue;
            };
            let DeValue::Table(table) = value.into_inner() else {
                let what = format!("must be a table: write [{path}] and its keys below");
                reader.fault(Some(line), &path, what);
                continue;
            };
            let mut rules = KnobRules::default();
            reader.section(&path, table, &mut rules);
            self.knobs.insert(knob.spec().key, rules);
        }
    }
}

impl Reader<'_> {
    fn section(&mut self, name: &str, table: DeTable<'_>, section: &mut impl Section) {
        for (key, value) in table {
            let line = line_at(self.text, key.span().start);
            let path = format!("{name}.{}", key.get_ref());
            match section.set(key.get_ref(), value) {
                Some(Ok(())) => {
                    self.lines.insert(path, line);
                }
                Some(Err(what)) => self.fault(Some(line), &path, what),
                None => {
                    let keys: Vec<_> = section.shown().iter().map(|shown| shown.key).collect();
                    self.fault(Some(line), &path, unknown(key.get_ref(), &keys, "option"));
                }
            }
        }
    }

    fn fault(&mut self, line: Option<usize>, key: &str, what: String) {
        self.faults.push(Fault { line, key: key.to_owned(), what });
    }

    /// Notes what is wrong with an option's value.
    pub(super) fn wrong(&mut self, key: &str, what: String) {
        let line = self.lines.get(key).copied();
        self.fault(line, key, what);
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// What to say of a name that does not exist: the nearest that does, or all of them.
fn unknown(name: &str, known: &[&str], kind: &str) -> String {
    let nearest = known.iter().min_by_key(|candidate| distance(name, candidate));
    match nearest {
        Some(nearest) if distance(name, nearest) <= 3 => {
            format!("no such {kind}; did you mean `{nearest}`?")
        }
        _ => format!("no such {kind}; there are {}", known.join(", ")),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
