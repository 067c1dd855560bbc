//! The table of bad jobs, as files are read and as calls are checked.

#[path = "bad/table.rs"]
mod table;

use semel_spec::{Fault, Format, QuestionFile, check_id, parse, wire};

use table::{Bad, FILE, call, table};

#[test]
fn what_every_case_begins_with_is_one_job_without_faults() {
    let file = parse("job.yaml", FILE.as_bytes(), Format::Yaml, &|_| unreachable!("it names no file")).expect("sound");
    let sent = wire::check(&call().spec).expect("sound");
    assert_eq!((file.job, file.checked.digest), (call().job_id, sent.digest));
}

#[test]
fn every_fault_of_a_file_is_said_with_its_place_its_value_and_what_to_do() {
    let mut wrong = Vec::new();
    for Bad { what, file, beside, lines, .. } in table() {
        let load = |name: &str| match beside {
            Some((there, bytes)) if there == name => Ok(QuestionFile { name: name.to_owned(), bytes: bytes.to_vec() }),
            _ => Err("No such file or directory (os error 2)".to_owned()),
        };
        let said: Vec<String> = match parse("job.yaml", file.as_bytes(), Format::Yaml, &load) {
            Ok(job) => vec![format!("accepted as {}", job.job)],
            Err(faults) => faults.iter().map(Fault::to_string).collect(),
        };
        if said != lines {
            wrong.push(format!("{what}:\n  said     {said:#?}\n  expected {lines:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_fault_of_a_call_is_said_with_its_field_its_value_and_what_to_do() {
    let mut wrong = Vec::new();
    for Bad { what, call, fields, .. } in table() {
        let Some(call) = call else {
            assert!(fields.is_empty(), "{what}");
            continue;
        };
        let of_spec = wire::check(&call.spec).err();
        let faults =
            check_id("job_id", &call.job_id).into_iter().chain(of_spec.into_iter().flat_map(|faults| faults.0));
        let said: Vec<(String, String)> =
            faults.map(|fault| (fault.path.clone(), Fault { path: String::new(), ..fault }.to_string())).collect();
        if said != fields {
            wrong.push(format!("{what}:\n  said     {said:#?}\n  expected {fields:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
