//! Compiles `proto/` into Rust and a descriptor set, without an installed protoc.
use std::{env, fs, path::PathBuf};

use prost::Message;

const FILES: [&str; 4] = [
    "proto/semel/v1/types.proto",
    "proto/semel/v1/agent.proto",
    "proto/semel/v1/jobs.proto",
    "proto/semel/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("semel_v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".semel.v1").compile_fds(descriptors)?;
    Ok(())
}
