//! Generates messages and async ttrpc bindings from `proto/` into OUT_DIR; nothing generated is kept in the tree.

use std::path::Path;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const PROTOS: [&str; 7] = ["agent", "csi", "health", "hypervisor", "node", "oci", "types"];

fn main() {
    println!("cargo:rerun-if-changed=proto");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    Codegen::new()
        .out_dir(&out)
        .inputs(PROTOS.map(|name| format!("proto/{name}.proto")))
        .include("proto")
        .rust_protobuf()
        .customize(Customize { async_all: true, gen_mod: true, ..Default::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .run()
        .expect("proto/ compiles");
    // An included file may not begin with inner attributes.
    let list = Path::new(&out).join("mod.rs");
    let modules = std::fs::read_to_string(&list).expect("the generator wrote mod.rs");
    let modules: Vec<&str> = modules.lines().filter(|line| line.starts_with("pub mod ")).collect();
    std::fs::write(list, modules.join("\n")).expect("OUT_DIR is writable");
}
