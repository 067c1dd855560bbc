//! The wire contract `semel.v1` as Rust: what `proto/semel/v1/*.proto` says, and the size of a message.

/// Messages, clients and servers of `semel.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("semel.v1");
}

/// The encoded `FileDescriptorSet` of `semel.v1`, for reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("semel_v1");

/// The largest message that either side takes, in bytes: an output and its provider's body at the largest limit go
/// through, with room for what is around them.
pub const MAX_MESSAGE_BYTES: usize = 80 << 20;
