//! The wire contract `semel.v1` as Rust: what `proto/semel/v1/*.proto` says, and nothing else.

/// Messages, clients and servers of `semel.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("semel.v1");
}

/// The encoded `FileDescriptorSet` of `semel.v1`, for reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("semel_v1");
