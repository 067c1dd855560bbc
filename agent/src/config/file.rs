//! The agents file as it is written: its keys, and what of it makes no sense where it stands.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::{Fault, Origin, key_from_env};
use crate::executor::{CommandSettings, DEFAULT_CONNECT_TIMEOUT, KeySource, OpenAiSettings, Stdout};

/// The whole file.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFile {
    pub(super) providers: BTreeMap<String, Spanned<RawProvider>>,
    pub(super) agents: Vec<Spanned<RawAgent>>,
}

/// What runs a provider's cells.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExecutorKind {
    Openai,
    Command,
    Echo,
}

/// A provider: the keys of all executors in one, so that a key at the wrong one has its place.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProvider {
    pub(super) executor: Spanned<ExecutorKind>,
    base_url: Option<Spanned<String>>,
    /// Taken only to be refused, and never looked at.
    key: Option<Spanned<IgnoredAny>>,
    key_env: Option<Spanned<String>>,
    key_file: Option<Spanned<PathBuf>>,
    key_header: Option<Spanned<String>>,
    region_header: Option<Spanned<String>>,
    region_pointer: Option<Spanned<String>>,
    connect_timeout: Option<Spanned<String>>,
    headers: Option<Spanned<BTreeMap<String, String>>>,
    program: Option<Spanned<Program>>,
    stdout: Option<Spanned<Stdout>>,
    env: Option<Spanned<BTreeMap<String, String>>>,
    pass_env: Option<Spanned<Vec<String>>>,
    pub(super) keep_response: Option<Spanned<bool>>,
}

/// An agent.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAgent {
    pub(super) id: Option<Spanned<String>>,
    pub(super) region: Spanned<String>,
    pub(super) slots: Option<Spanned<u32>>,
    pub(super) prefetch: Option<Spanned<u32>>,
    pub(super) models: BTreeMap<String, Spanned<RawModel>>,
}

/// How a model is reached: a provider's name, or that and the model's name there.
pub(super) struct RawModel {
    pub(super) provider: String,
    pub(super) model: Option<String>,
}

impl<'de> Deserialize<'de> for RawModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Long {
            provider: String,
            model: Option<String>,
        }
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = RawModel;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a provider's name, or { provider: NAME, model: NAME }")
            }

            fn visit_str<E: de::Error>(self, provider: &str) -> Result<RawModel, E> {
                Ok(RawModel { provider: provider.to_owned(), model: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawModel, A::Error> {
                let Long { provider, model } = Long::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(RawModel { provider, model })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// A program and its arguments, as a list or as one word.
struct Program(Vec<String>);

impl<'de> Deserialize<'de> for Program {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Program;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a program, or a list of it and its arguments")
            }

            fn visit_str<E: de::Error>(self, program: &str) -> Result<Program, E> {
                Ok(Program(vec![program.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Program, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(Program)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl RawProvider {
    /// Where each key stands that is there, and which executor it belongs to; none for those of all.
    fn places(&self) -> Vec<(&'static str, Option<ExecutorKind>, u64)> {
        let (openai, command) = (Some(ExecutorKind::Openai), Some(ExecutorKind::Command));
        let at = |field, kind, line: Option<u64>| line.map(|line| (field, kind, line));
        let all = [
            at("base_url", openai, line(&self.base_url)),
            at("key", openai, line(&self.key)),
            at("key_env", openai, line(&self.key_env)),
            at("key_file", openai, line(&self.key_file)),
            at("key_header", openai, line(&self.key_header)),
            at("region_header", openai, line(&self.region_header)),
            at("region_pointer", openai, line(&self.region_pointer)),
            at("connect_timeout", openai, line(&self.connect_timeout)),
            at("headers", openai, line(&self.headers)),
            at("program", command, line(&self.program)),
            at("stdout", command, line(&self.stdout)),
            at("env", command, line(&self.env)),
            at("pass_env", command, line(&self.pass_env)),
            at("keep_response", None, line(&self.keep_response)),
        ];
        all.into_iter().flatten().collect()
    }

    /// The line of the key `field`, else of the provider's executor.
    pub(super) fn line(&self, field: &str) -> u64 {
        let place = self.places().into_iter().find(|(name, ..)| *name == field);
        place.map_or_else(|| self.executor.referenced.line(), |(.., line)| line)
    }

    /// Keys of another executor than this provider's.
    pub(super) fn misplaced(&self) -> Vec<Fault> {
        let own = self.executor.value;
        let foreign = self.places().into_iter().filter(|(_, kind, _)| kind.is_some_and(|kind| kind != own));
        let fault = |(field, kind, line): (&str, Option<ExecutorKind>, u64)| Fault {
            line,
            message: format!("{field} belongs to the executor {}, and this is {}", kind.map_or("", name), name(own)),
        };
        foreign.map(fault).collect()
    }

    /// The settings of an endpoint; none where a fault was added that leaves none.
    pub(super) fn openai(&self, origin: Origin<'_>, faults: &mut Vec<Fault>) -> Option<OpenAiSettings> {
        let mut fault = |field: &str, message: String| {
            faults.push(Fault { line: self.line(field), message: format!("{field}: {message}") })
        };
        if self.key.is_some() {
            fault("key", "a key must not stand in this file; put it into an environment variable and name that by key_env, or into a file and name that by key_file".to_owned());
        }
        let key = match (&self.key_env, &self.key_file) {
            (Some(_), Some(_)) => {
                fault("key_file", "there is key_env as well; leave one of them out".to_owned());
                KeySource::None
            }
            (Some(name), None) => {
                key_from_env(&name.value, origin).map_err(|words| fault("key_env", words)).unwrap_or_default()
            }
            (None, Some(path)) => KeySource::File(origin.folder.join(&path.value)),
            (None, None) => KeySource::None,
        };
        if self.key_header.is_some() && key == KeySource::None {
            fault("key_header", "there is no key to carry; name one by key_env or key_file".to_owned());
        }
        let connect_timeout =
            self.connect_timeout.as_ref().map_or(Ok(DEFAULT_CONNECT_TIMEOUT), |text| duration(&text.value));
        let connect_timeout =
            connect_timeout.map_err(|words| fault("connect_timeout", words)).unwrap_or(DEFAULT_CONNECT_TIMEOUT);
        let Some(base_url) = &self.base_url else {
            fault("base_url", "is missing; it says where the endpoint is: http://127.0.0.1:11434/v1".to_owned());
            return None;
        };
        Some(OpenAiSettings {
            base_url: base_url.value.clone(),
            key,
            key_header: text(&self.key_header),
            region_header: text(&self.region_header),
            region_pointer: text(&self.region_pointer),
            keep_response: self.keep_response.as_ref().is_none_or(|keep| keep.value),
            connect_timeout,
            headers: self
                .headers
                .as_ref()
                .map(|headers| headers.value.clone().into_iter().collect())
                .unwrap_or_default(),
        })
    }

    /// The settings of a program; none where a fault was added that leaves none.
    pub(super) fn command(&self, origin: Origin<'_>, faults: &mut Vec<Fault>) -> Option<CommandSettings> {
        let mut fault = |field: &str, message: String| {
            faults.push(Fault { line: self.line(field), message: format!("{field}: {message}") })
        };
        let mut pass_env = BTreeMap::new();
        for name in self.pass_env.iter().flat_map(|names| &names.value) {
            match (origin.env)(name) {
                Some(value) => drop(pass_env.insert(name.clone(), value)),
                None => fault("pass_env", format!("the environment variable {name:?} is not set")),
            }
        }
        let Some(program) = &self.program else {
            fault("program", "is missing; it is the program and its arguments: [./answer, --fast]".to_owned());
            return None;
        };
        Some(CommandSettings {
            stdout: self.stdout.as_ref().map(|stdout| stdout.value).unwrap_or_default(),
            env: self.env.as_ref().map(|env| env.value.clone()).unwrap_or_default(),
            pass_env,
            keep_response: self.keep_response.as_ref().is_none_or(|keep| keep.value),
            ..CommandSettings::new(program.value.0.clone(), origin.folder)
        })
    }
}

fn line<T>(field: &Option<Spanned<T>>) -> Option<u64> {
    field.as_ref().map(|field| field.referenced.line())
}

fn text(field: &Option<Spanned<String>>) -> Option<String> {
    field.as_ref().map(|field| field.value.clone())
}

fn name(kind: ExecutorKind) -> &'static str {
    match kind {
        ExecutorKind::Openai => "openai",
        ExecutorKind::Command => "command",
        ExecutorKind::Echo => "echo",
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|_| format!("{text:?} is no duration; write 10s or 500ms"))?;
    if duration.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(duration) }
}

/// Reads the file's form. What the values mean is looked at afterwards.
pub(super) fn parse(text: &str) -> Result<RawFile, Fault> {
    if text.trim().is_empty() {
        return Err(Fault {
            line: 0,
            message: "is empty; an agents file has the keys providers and agents".to_owned(),
        });
    }
    serde_saphyr::from_str(text).map_err(|error| {
        // Without the snippet: the lines around a fault may hold what nobody should read.
        let error = error.without_snippet();
        let line = error.location().map_or(0, |location| location.line());
        Fault { line, message: words(error) }
    })
}

fn words(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    let names = |names: &[&'static str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("there is no key {field:?} here{}", advice(field, &names(expected)))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("{variant:?} is not possible here{}", advice(variant, &names(expected)))
        }
        Error::SerdeMissingField { field, .. } => format!("the key {field:?} is missing"),
        // The found value stays out: it may be a key in the wrong place.
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            format!("the value is not of the right type; expected {expected}")
        }
        other => other.to_string(),
    }
}

/// The nearest of `known`, or all of them.
pub(super) fn advice(wrong: &str, known: &[String]) -> String {
    let nearest = known.iter().map(|name| (strsim::damerau_levenshtein(wrong, name), name)).min();
    match nearest {
        None => "; there are none".to_owned(),
        Some((distance, name)) if distance <= 1 + name.chars().count() / 4 => format!("; did you mean {name:?}?"),
        Some(_) => format!("; possible are {}", known.join(", ")),
    }
}
