//! Bad input: every way in which a specification is refused.

use semel_proto::v1 as pb;

use super::server::spec;

/// A specification without faults: two questions to two models in one region.
pub fn base() -> pb::JobSpec {
    spec(&["q1", "q2"], &["m1", "m2"], &["eu"])
}

/// A specification with one thing wrong, and the fields that its refusal names.
pub type Wrong = (&'static str, fn(&mut pb::JobSpec), &'static [&'static str]);

/// What is wrong, how it is made so, and the fields of the refusal.
pub const WRONG: &[Wrong] = &[
    ("no questions", |s| s.questions.clear(), &["spec.questions"]),
    ("no models", |s| s.models.clear(), &["spec.models"]),
    ("a model without a region", |s| s.models[1].regions.clear(), &["spec.models[1].regions"]),
    ("a question twice", |s| s.questions[1].id = "q1".into(), &["spec.questions[1].id"]),
    ("a model twice", |s| s.models[1].id = "m1".into(), &["spec.models[1].id"]),
    ("a region twice", |s| s.models[0].regions.push("eu".into()), &["spec.models[0].regions[1]"]),
    ("an empty id", |s| s.questions[0].id.clear(), &["spec.questions[0].id"]),
    ("a control character", |s| s.models[0].id = "m\u{1b}".into(), &["spec.models[0].id"]),
    ("NUL", |s| s.models[0].regions[0] = "e\0u".into(), &["spec.models[0].regions[0]"]),
    ("outer white space", |s| s.questions[1].id = " q2".into(), &["spec.questions[1].id"]),
    ("256 bytes", |s| s.questions[1].id = "q".repeat(256), &["spec.questions[1].id"]),
    (
        "a region of no model",
        |s| s.regions = vec![pb::RegionSettings { id: "us".into(), system_prompt: None }],
        &["spec.regions[0].id"],
    ),
    ("broken JSON", |s| s.parameters_json = Some("{".into()), &["spec.parameters_json"]),
    ("JSON of a wrong type", |s| s.models[0].parameters_json = Some("[]".into()), &["spec.models[0].parameters_json"]),
    ("an executor's own key", |s| s.parameters_json = Some(r#"{"model":"x"}"#.into()), &["spec.parameters_json.model"]),
    (
        "an unknown choice",
        |s| s.policy = Some(pb::Policy { on_lease_lost: 9, ..Default::default() }),
        &["spec.policy.on_lease_lost"],
    ),
    (
        "too many attempts",
        |s| s.policy = Some(pb::Policy { attempts: Some(101), ..Default::default() }),
        &["spec.policy.attempts"],
    ),
    (
        "too long a wait",
        |s| s.policy = Some(pb::Policy { deadline_ms: Some(u64::MAX), ..Default::default() }),
        &["spec.policy.deadline_ms"],
    ),
    ("no sample", |s| s.repeat = Some(0), &["spec.repeat"]),
    (
        "everything at once",
        |s| {
            s.questions[0].id.clear();
            s.models[1].regions.clear();
            s.repeat = Some(1_000_001);
        },
        &["spec.questions[0].id", "spec.models[1].regions", "spec.repeat"],
    ),
];
