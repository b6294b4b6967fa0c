//! Settings as a table: one row per key, from which the parser, the environment, `config check` and the reference page all come, so that
//! they can't disagree.
//!
//! The node has its rows ([`super::SETTINGS`]); a host that reads the same file (the agent) brings more, and all are checked together,
//! because a misspelt section must be found whoever it belongs to.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// One key of the config file.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its section, `limits` for `[limits]`.
    pub section: &'static str,
    /// Its name, units last.
    pub key: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// What holds where nothing stands there.
    pub default: fn() -> Value,
    /// Whether a running host takes a new value over on SIGHUP.
    pub reload: bool,
    /// What it does, for the reference page; Markdown.
    pub about: &'static str,
}

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds, both included.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Bytes: a whole number, or text with a unit as in `"256 MiB"`; bounds included.
    Bytes {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
    /// A list of words or whole numbers.
    List,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Integer`] and [`Kind::Bytes`].
    Integer(u64),
    /// Of [`Kind::Choice`] and [`Kind::Text`].
    Text(String),
    /// Of [`Kind::List`].
    List(Vec<String>),
}

impl fmt::Display for Value {
    /// As it stands in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(value) => write!(f, "{value}"),
            Value::Integer(value) => write!(f, "{value}"),
            Value::Text(value) => write!(f, "{value:?}"),
            Value::List(values) => write!(f, "{values:?}"),
        }
    }
}

/// Everything that is wrong with a config, each with the place and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, in the order of the file; never empty.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// What is wrong, and on what.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable.
    Environment(String),
    /// The file as a whole.
    File,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match &problem.place {
                Place::Line(line) => write!(f, "{}:{line}: ", self.path.display())?,
                Place::Environment(name) => write!(f, "environment variable {name}: ")?,
                Place::File => write!(f, "{}: ", self.path.display())?,
            }
            write!(f, "{}: {}", problem.message, problem.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The checked values of all keys of some tables.
#[derive(Clone, Debug)]
pub struct Settings {
    values: BTreeMap<(&'static str, &'static str), Value>,
    places: BTreeMap<(&'static str, &'static str), Place>,
}

impl Settings {
    /// Checks the text of a config file against `tables`, then lays the environment over it (`BASALT_<SECTION>_<KEY>`; lists are
    /// separated by commas). `path` is for messages only. All problems are reported, not only the first.
    pub fn check(
        text: &str,
        path: &Path,
        tables: &[&'static [Setting]],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Settings, ConfigError> {
        let mut check = Check { text, tables, problems: Vec::new(), places: BTreeMap::new() };
        let mut values: BTreeMap<_, _> =
            check.settings().map(|setting| ((setting.section, setting.key), (setting.default)())).collect();
        match DeTable::parse(text) {
            Ok(table) => check.file(table.get_ref(), &mut values),
            Err(err) => {
                let line = err.span().map_or(Place::File, |span| check.line(span.start));
                let message = format!("not TOML: {}", err.message());
                check.problem(line, message, "see https://toml.io for the syntax".to_owned());
            }
        }
        check.environment(environment, &mut values);
        if check.problems.is_empty() {
            Ok(Settings { values, places: check.places })
        } else {
            Err(ConfigError { path: path.to_owned(), problems: check.problems })
        }
    }

    /// The value of a key; `None` only for a key that is in none of the tables.
    pub fn get(&self, section: &str, key: &str) -> Option<&Value> {
        self.values.iter().find(|((s, k), _)| *s == section && *k == key).map(|(_, value)| value)
    }

    /// Where a key was set; `None` where it has its default.
    pub fn place(&self, section: &str, key: &str) -> Option<&Place> {
        self.places.iter().find(|((s, k), _)| *s == section && *k == key).map(|(_, place)| place)
    }

    /// The value of a [`Kind::Bool`] key.
    pub fn bool(&self, section: &str, key: &str) -> bool {
        match self.get(section, key) {
            Some(Value::Bool(value)) => *value,
            other => not_in_table(section, key, other, false),
        }
    }

    /// The value of a [`Kind::Integer`] or [`Kind::Bytes`] key.
    pub fn integer(&self, section: &str, key: &str) -> u64 {
        match self.get(section, key) {
            Some(Value::Integer(value)) => *value,
            other => not_in_table(section, key, other, 0),
        }
    }

    /// The value of a [`Kind::Text`] or [`Kind::Choice`] key.
    pub fn text(&self, section: &str, key: &str) -> &str {
        match self.get(section, key) {
            Some(Value::Text(value)) => value,
            other => not_in_table(section, key, other, ""),
        }
    }

    /// The value of a [`Kind::List`] key.
    pub fn list(&self, section: &str, key: &str) -> &[String] {
        match self.get(section, key) {
            Some(Value::List(value)) => value,
            other => not_in_table(section, key, other, &[]),
        }
    }

    /// All values with the keys that hold them, by section and key.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, &Value)> {
        self.values.iter().map(|((section, key), value)| (*section, *key, value))
    }
}

/// A key that is read but stands in no table is a mistake in this program, which any test that reads it finds.
fn not_in_table<T>(section: &str, key: &str, found: Option<&Value>, neutral: T) -> T {
    debug_assert!(false, "[{section}] {key} is read as another kind than its table says: {found:?}");
    neutral
}

/// Sections that the agent reads from the same file. A host that does not bring their table, such as Kubo, passes over them.
pub const AGENT_SECTIONS: &[&str] = &["log", "http", "agent", "snapshots", "plane", "cql", "kubo", "nats", "worker"];

struct Check<'a> {
    text: &'a str,
    tables: &'a [&'static [Setting]],
    problems: Vec<Problem>,
    places: BTreeMap<(&'static str, &'static str), Place>,
}

type Values = BTreeMap<(&'static str, &'static str), Value>;

impl<'a> Check<'a> {
    fn settings(&self) -> impl Iterator<Item = &'static Setting> + use<'a> {
        self.tables.iter().flat_map(|table| table.iter())
    }

    fn line(&self, offset: usize) -> Place {
        let before = self.text.as_bytes().iter().take(offset);
        Place::Line(1 + before.filter(|byte| **byte == b'\n').count())
    }

    fn problem(&mut self, place: Place, message: String, remedy: String) {
        self.problems.push(Problem { place, message, remedy });
    }

    fn file(&mut self, table: &DeTable<'_>, values: &mut Values) {
        let mut sections: Vec<_> = table.iter().collect();
        sections.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in sections {
            let section = name.get_ref().as_ref();
            let place = self.line(name.span().start);
            let known: Vec<_> = self.settings().filter(|setting| setting.section == section).collect();
            if known.is_empty() {
                if AGENT_SECTIONS.contains(&section) {
                    continue;
                }
                // A key of some section that was written without its header is the commoner mistake.
                if let Some(setting) = self.settings().find(|setting| setting.key == section) {
                    let remedy = format!("write it below a line [{}]", setting.section);
                    self.problem(place, format!("'{section}' stands outside of its section"), remedy);
                } else {
                    let names = self.settings().map(|setting| setting.section);
                    let remedy = suggest(section, names, "section");
                    self.problem(place, format!("unknown section [{section}]"), remedy);
                }
                continue;
            }
            let DeValue::Table(keys) = value.get_ref() else {
                let remedy = format!("write [{section}] on a line of its own and its keys below it");
                self.problem(place, format!("'{section}' is a section"), remedy);
                continue;
            };
            let mut keys: Vec<_> = keys.iter().collect();
            keys.sort_by_key(|(name, _)| name.span().start);
            for (name, value) in keys {
                self.key(section, &known, name, value, values);
            }
        }
    }

    fn key(
        &mut self,
        section: &str,
        known: &[&'static Setting],
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        values: &mut Values,
    ) {
        let key = name.get_ref().as_ref();
        let place = self.line(name.span().start);
        let Some(setting) = known.iter().find(|setting| setting.key == key) else {
            let remedy = suggest(key, known.iter().map(|setting| setting.key), "key");
            self.problem(place, format!("unknown key '{key}' in [{section}]"), remedy);
            return;
        };
        match from_toml(setting.kind, value.get_ref()) {
            Some(value) => {
                self.places.insert((setting.section, setting.key), place);
                values.insert((setting.section, setting.key), value);
            }
            None => {
                let found = self.text.get(value.span()).unwrap_or("this value");
                let message = format!("[{section}] {key} can't be {found}");
                self.problem(place, message, allowed(setting.kind));
            }
        }
    }

    fn environment(&mut self, environment: &dyn Fn(&str) -> Option<String>, values: &mut Values) {
        let settings: Vec<_> = self.settings().collect();
        for setting in settings {
            let name = variable(setting);
            let Some(text) = environment(&name) else { continue };
            match from_text(setting.kind, &text) {
                Some(value) => {
                    self.places.insert((setting.section, setting.key), Place::Environment(name));
                    values.insert((setting.section, setting.key), value);
                }
                None => {
                    let message = format!("[{}] {} can't be '{text}'", setting.section, setting.key);
                    self.problem(Place::Environment(name), message, allowed(setting.kind));
                }
            }
        }
    }
}

/// Name of the environment variable that overrides a key.
pub fn variable(setting: &Setting) -> String {
    format!("BASALT_{}_{}", setting.section, setting.key).to_uppercase()
}

fn from_toml(kind: Kind, value: &DeValue<'_>) -> Option<Value> {
    match (kind, value) {
        (Kind::Bool, DeValue::Boolean(value)) => Some(Value::Bool(*value)),
        (Kind::Integer { .. } | Kind::Bytes { .. }, DeValue::Integer(value)) => {
            bounded(kind, u64::from_str_radix(value.as_str(), value.radix()).ok()?)
        }
        (Kind::Bytes { .. }, DeValue::String(text)) => bounded(kind, bytes(text)?),
        (Kind::Choice(_) | Kind::Text, DeValue::String(text)) => from_text(kind, text),
        (Kind::List, DeValue::Array(items)) => {
            let items = items.iter().map(|item| match item.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                DeValue::Integer(value) => {
                    u64::from_str_radix(value.as_str(), value.radix()).ok().map(|n| n.to_string())
                }
                _ => None,
            });
            items.collect::<Option<Vec<_>>>().map(Value::List)
        }
        _ => None,
    }
}

fn from_text(kind: Kind, text: &str) -> Option<Value> {
    match kind {
        Kind::Bool => text.parse().ok().map(Value::Bool),
        Kind::Integer { .. } => bounded(kind, text.trim().parse().ok()?),
        Kind::Bytes { .. } => bounded(kind, bytes(text)?),
        Kind::Choice(words) => words.contains(&text).then(|| Value::Text(text.to_owned())),
        Kind::Text => Some(Value::Text(text.to_owned())),
        Kind::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::List(items.map(str::to_owned).collect()))
        }
    }
}

fn bounded(kind: Kind, value: u64) -> Option<Value> {
    match kind {
        Kind::Integer { min, max } | Kind::Bytes { min, max } => {
            (min..=max).contains(&value).then_some(Value::Integer(value))
        }
        _ => None,
    }
}

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// Bytes from `268435456`, `"256 MiB"` or `"256MiB"`; binary units only, so that nobody has to guess.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, shift) = UNITS
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|number| (number, *shift)))
        .unwrap_or((text, 0));
    number.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Bytes in the largest binary unit that needs no fraction.
pub fn display_bytes(value: u64) -> String {
    let unit = UNITS.iter().find(|(_, shift)| value != 0 && value.is_multiple_of(1 << shift));
    unit.map_or_else(|| value.to_string(), |(unit, shift)| format!("{} {unit}", value >> shift))
}

/// What is allowed, as the remedy of a wrong value and in the reference page.
pub fn allowed(kind: Kind) -> String {
    match kind {
        Kind::Bool => "write true or false".to_owned(),
        Kind::Integer { min, max: u64::MAX } => format!("write a whole number from {min}"),
        Kind::Integer { min, max } => format!("write a whole number from {min} to {max}"),
        Kind::Bytes { min, max } => format!(
            "write a number of bytes from {min} to {max}, or text with a unit from \"{}\" to \"{}\"",
            display_bytes(min),
            display_bytes(max)
        ),
        Kind::Choice(words) => format!("write one of {}", quoted(words)),
        Kind::Text => "write a text in quotes".to_owned(),
        Kind::List => "write a list, as in [\"one\", \"two\"]".to_owned(),
    }
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a str>, what: &str) -> String {
    let mut known: Vec<_> = known.collect();
    known.sort_unstable();
    known.dedup();
    let nearest = known.iter().min_by_key(|candidate| distance(name, candidate));
    match nearest {
        Some(nearest) if distance(name, nearest) <= 1 + nearest.len() / 3 => format!("did you mean '{nearest}'?"),
        _ => format!("the {what}s known here are {}", known.join(", ")),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (to, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            left = (diagonal + usize::from(from != *to)).min(left + 1).min(above + 1);
            diagonal = above;
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// The reference of some tables as Markdown: one section each, one row per key.
pub fn reference(tables: &[&'static [Setting]]) -> String {
    let mut page = String::new();
    let mut section = "";
    for setting in tables.iter().flat_map(|table| table.iter()) {
        if setting.section != section {
            section = setting.section;
            page.push_str(&format!(
                "\n## [{section}]\n\n| Key | Default | Allowed | Reload | What it does |\n|---|---|---|---|---|\n"
            ));
        }
        let default = match (setting.kind, (setting.default)()) {
            (Kind::Bytes { .. }, Value::Integer(value)) => format!("\"{}\"", display_bytes(value)),
            (_, value) => value.to_string(),
        };
        let allowed = allowed(setting.kind).replacen("write ", "", 1);
        let reload = if setting.reload { "yes" } else { "restart" };
        page.push_str(&format!("| `{}` | `{default}` | {allowed} | {reload} | {} |\n", setting.key, setting.about));
    }
    page
}
