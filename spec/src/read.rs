//! Job and question files on a disk: the only I/O of this crate.

use std::path::{Path, PathBuf};

use crate::{Faults, Format, JobFile, MAX_SPEC_BYTES, QuestionFile, fault::Fault, parse};

/// Reads and checks a job file: JSON if its name ends in `.json`, else YAML. A question file that
/// it names is looked for beside it.
///
/// # Errors
/// Every fault of the job file and its question file, or the one that it can't be read.
pub fn job(path: &Path) -> Result<JobFile, Faults> {
    let name = path.display().to_string();
    let text = semel_files::read(path, MAX_SPEC_BYTES).map_err(|error| {
        let problem = format!("the file can't be read: {error}");
        Faults(vec![Fault {
            file: Some(name.clone()),
            ..Fault::of_field("", None, &problem, "name a job file that can")
        }])
    })?;
    let json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let format = if json { Format::Json } else { Format::Yaml };
    let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
    parse(&name, &text, format, &|file| beside(&folder, file))
}

fn beside(folder: &Path, file: &str) -> Result<QuestionFile, String> {
    let path: PathBuf = folder.join(file);
    let bytes = semel_files::read(&path, MAX_SPEC_BYTES).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_SPEC_BYTES {
        return Err(format!("it has more than {MAX_SPEC_BYTES} bytes"));
    }
    Ok(QuestionFile { name: path.display().to_string(), bytes })
}
