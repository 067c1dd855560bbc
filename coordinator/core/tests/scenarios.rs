//! Transcripts: events in, decisions out, as text. They are the documentation of the protocol, one for
//! each interleaving that a rule closes. `UPDATE=1` rewrites them; the change is reviewed as a diff.
//!
//! A line that begins with `>` is an event or an act of the shell, with what came of it below. Tokens are
//! written EPOCH.COUNTER; `*` after one means started, `!` that its secret is a guess.

#[path = "scenarios/words.rs"]
mod words;
#[path = "scenarios/world.rs"]
mod world;

use std::{fs, path::PathBuf};

/// The transcript again, with what comes of its events now.
fn play(text: &str) -> String {
    let mut world = world::World::new();
    let mut played = String::new();
    for line in text.lines() {
        if let Some(act) = line.strip_prefix('>') {
            played.push_str(line);
            played.push('\n');
            for said in world.act(act.trim()) {
                played.push_str(&format!("    {said}\n"));
            }
        } else if !line.starts_with(' ') {
            played.push_str(line);
            played.push('\n');
        }
    }
    played
}

#[test]
fn every_scenario_plays_as_it_is_written() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the folder of the scenarios")
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 20, "{} scenarios in {}", paths.len(), folder.display());
    let update = std::env::var_os("UPDATE").is_some();
    let mut differ = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("a scenario");
        let played = play(&text);
        if played == text {
            continue;
        }
        if update {
            fs::write(&path, played).expect("a scenario can be written");
        } else {
            differ.push(format!("{}:\n{}", path.display(), difference(&text, &played)));
        }
    }
    assert!(differ.is_empty(), "UPDATE=1 rewrites; then read the diff.\n{}", differ.join("\n"));
}

/// The first line in which they differ.
fn difference(text: &str, played: &str) -> String {
    let (mut old, mut new) = (text.lines(), played.lines());
    for number in 1.. {
        let (was, is) = (old.next(), new.next());
        if was != is {
            return format!("line {number}\n  written: {}\n  played:  {}", was.unwrap_or("-"), is.unwrap_or("-"));
        }
    }
    String::new()
}
