//! Commands that are told to a person, as they are to be typed.

use semel_proto::v1 as pb;

use crate::{arguments::Place, terminal::shown};

/// A command about a job that speaks to the same coordinator as this one.
pub fn command(place: &Place, verb: &str, job_id: &str, options: &str) -> String {
    let mut words = vec!["semel".to_owned(), verb.to_owned(), quoted(job_id)];
    if let (Some(address), Some(file)) = (&place.coordinator, &place.token_file) {
        words.push(format!("--coordinator {} --token-file {}", quoted(address), quoted(&file.display().to_string())));
    } else if place.is_store_named() {
        words.push(format!("--store {}", quoted(&place.store().display().to_string())));
    }
    if !options.is_empty() {
        words.push(options.to_owned());
    }
    shown(&words.join(" "))
}

/// The command that opens a closed job again, for what happened to it: of cells that failed it says that they run again too.
pub fn reopen(place: &Place, job: &pb::Job) -> String {
    let has_failed = job.counts.is_some_and(|counts| counts.failed > 0);
    command(place, "retry", &job.job_id, if has_failed { "--status failed --reopen" } else { "--reopen" })
}

/// The command that shows one cell whole.
pub fn cell(place: &Place, key: &pb::ExecutionKey) -> String {
    let pb::ExecutionKey { job_id, region, model, question, repeat, .. } = key;
    let mut options = format!("--region {} --model {} --question {}", quoted(region), quoted(model), quoted(question));
    if *repeat > 0 {
        options.push_str(&format!(" --repeat {repeat}"));
    }
    command(place, "show", job_id, &options)
}

/// This process's own command.
pub fn same_command() -> String {
    shown(&std::env::args().map(|word| quoted(&word)).collect::<Vec<_>>().join(" "))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_for_a_shell_only_where_it_must_be() {
        assert_eq!(quoted("examples/first.yaml"), "examples/first.yaml");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_command_names_the_store_or_the_coordinator_only_where_this_one_did() {
        let place = |store: Option<&str>| Place { store: store.map(Into::into), coordinator: None, token_file: None };
        assert_eq!(command(&place(None), "audit", "first", ""), "semel audit first");
        assert_eq!(
            command(&place(Some("a b.db")), "retry", "j", "--reopen"),
            "semel retry j --store 'a b.db' --reopen"
        );
        let elsewhere =
            Place { coordinator: Some("127.0.0.1:7601".into()), token_file: Some("token".into()), ..place(None) };
        assert_eq!(
            command(&elsewhere, "audit", "first", ""),
            "semel audit first --coordinator 127.0.0.1:7601 --token-file token"
        );
    }
}
