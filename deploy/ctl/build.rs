//! Generates messages, client and server from `proto/` into OUT_DIR with a compiler in Rust; nothing generated is kept in the tree.

fn main() {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/keyprovider.proto"], ["proto"]).expect("proto/ compiles");
    tonic_prost_build::configure().build_transport(false).compile_fds(files).expect("OUT_DIR is writable");
}
