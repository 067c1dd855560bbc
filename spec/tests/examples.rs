//! The examples are read as they stand, and their schema is the one that the reader gives.

use std::path::{Path, PathBuf};

use semel_spec::{JobFile, read, schema};
use serde_json::Value;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn example(name: &str) -> JobFile {
    match read::job(&examples().join(name)) {
        Ok(job) => job,
        Err(faults) => panic!("{faults}"),
    }
}

/// `UPDATE_SCHEMA=1` writes it anew.
#[test]
fn the_published_schema_is_the_readers_own() {
    let path = examples().join("job.schema.json");
    let text = format!("{:#}\n", schema());
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &text).expect("the schema can be written");
    }
    let published = std::fs::read_to_string(&path).expect("the schema is there");
    assert!(published == text, "run this test with UPDATE_SCHEMA=1");
}

#[test]
fn the_first_example_is_the_72_cells_of_one_model_at_three_temperatures() {
    let job = example("first.yaml");
    assert_eq!((job.job.as_str(), job.checked.cells), ("first", 72));
    let resolved = &job.checked.resolved;
    assert!(resolved.models.iter().all(|m| m.model == "smollm2-135m"));
    let inputs: Vec<_> = (0..3)
        .map(|model| resolved.input(model, "eu-west", 4).expect("a cell"))
        .map(|input| String::from_utf8(input).expect("JSON is text"))
        .collect();
    assert_eq!(
        inputs.first().map(String::as_str),
        Some(
            r#"{"messages":[{"content":"What is the opposite of \"early\"?","role":"user"}],"model":"smollm2-135m","parameters":{"max_tokens":32,"temperature":0}}"#
        )
    );
    assert!(inputs[1].contains(r#""temperature":0.7"#), "{}", inputs[1]);
    assert!(inputs[2].contains(r#""temperature":1}"#), "{}", inputs[2]);
}

#[test]
fn the_second_example_has_the_incidents_axes() {
    let job = example("incident.yaml");
    assert_eq!((job.job.as_str(), job.checked.cells), ("incident", 72));
    let spec = &job.checked.spec;
    let models: Vec<_> = spec.models.iter().map(|m| m.id.as_str()).collect();
    assert_eq!(models, ["llama3.2-1b", "mistral-7b", "qwen2.5-1.5b"]);
    let questions: Vec<_> = spec.questions.iter().map(|q| q.id.as_str()).collect();
    assert_eq!(
        questions,
        [
            "math_basic",
            "geography_basic",
            "identity_basic",
            "tiananmen_neutral",
            "taiwan_status",
            "hongkong_2019",
            "greatest_invention",
            "greatest_leader"
        ]
    );
    for model in &spec.models {
        assert_eq!(model.regions, ["us-east", "eu-west", "asia-pacific"]);
    }
}

#[test]
fn each_example_tells_editors_its_schema_and_keeps_to_it() {
    let schema = schema();
    for name in ["first.yaml", "incident.yaml"] {
        let text = std::fs::read_to_string(examples().join(name)).expect("the example is there");
        let first = text.lines().next();
        assert_eq!(first, Some("# yaml-language-server: $schema=job.schema.json"), "{name}");
        let value: Value = serde_saphyr::from_str(&text).expect("valid YAML");
        if let Err(fault) = keeps_to(&value, &schema, &schema) {
            panic!("{name}: {fault}");
        }
    }
}

#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let schema = schema();
    let text = std::fs::read_to_string(examples().join("first.yaml")).expect("the example is there");
    let good: Value = serde_saphyr::from_str(&text).expect("valid YAML");
    let with = |pointer: &str, value: Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).expect(pointer) = value;
        bad
    };
    for bad in [
        with("/job", 7.into()),
        with("/questions", Value::Array(Vec::new())),
        with("/questions/0", serde_json::json!({"id": "q", "prompts": "?"})),
        with("/models/0/id", "".into()),
        with("/parameters", serde_json::json!({"stream": true})),
        with("/regions/0", 1.into()),
    ] {
        assert!(keeps_to(&bad, &schema, &schema).is_err(), "{bad}");
    }
}

/// The part of JSON Schema that the job file's uses.
fn keeps_to(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    if let Some(Value::String(pointer)) = schema.get("$ref") {
        let found = root.pointer(pointer.trim_start_matches('#'));
        return keeps_to(value, found.ok_or("a $ref to nothing")?, root);
    }
    let fits = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => false,
    };
    if let Some(kind) = schema.get("type").and_then(Value::as_str)
        && !fits(kind)
    {
        return Err(format!("{value} is no {kind}"));
    }
    if let Some(choices) = schema.get("enum").and_then(Value::as_array)
        && !choices.contains(value)
    {
        return Err(format!("{value} is none of {choices:?}"));
    }
    for (word, length) in
        [("minItems", value.as_array().map(Vec::len)), ("minLength", value.as_str().map(|text| text.chars().count()))]
    {
        let least = schema.get(word).and_then(Value::as_u64).unwrap_or(0);
        if length.is_some_and(|length| (length as u64) < least) {
            return Err(format!("{value} is too short"));
        }
    }
    combined(value, schema, root)?;
    for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        let key = required.as_str().ok_or("a key that is no text")?;
        value.get(key).ok_or(format!("{value} has no {key}"))?;
    }
    let properties = schema.get("properties");
    for (key, part) in value.as_object().into_iter().flatten() {
        match properties.and_then(|properties| properties.get(key)) {
            Some(schema) => keeps_to(part, schema, root)?,
            None if schema.get("additionalProperties") == Some(&Value::Bool(false)) => {
                return Err(format!("{key} is no known key"));
            }
            None => {}
        }
    }
    if let Some(schema) = schema.get("items") {
        for item in value.as_array().into_iter().flatten() {
            keeps_to(item, schema, root)?;
        }
    }
    Ok(())
}

fn combined(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    let matching = |schemas: &Value| {
        let schemas = schemas.as_array().into_iter().flatten();
        schemas.filter(|schema| keeps_to(value, schema, root).is_ok()).count()
    };
    if let Some(schemas) = schema.get("oneOf")
        && matching(schemas) != 1
    {
        return Err(format!("{value} keeps to {} of {schemas}", matching(schemas)));
    }
    if let Some(schemas) = schema.get("anyOf")
        && matching(schemas) == 0
    {
        return Err(format!("{value} keeps to none of {schemas}"));
    }
    if let Some(schema) = schema.get("not")
        && keeps_to(value, schema, root).is_ok()
    {
        return Err(format!("{value} has what it must not"));
    }
    Ok(())
}
