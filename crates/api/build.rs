//! Compiles the `.proto` files without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["workload.proto", "authorization.proto", "zds.proto", "ca.proto", "discovery.proto", "config.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // Bytes are shared, not copied: one encoded resource goes to every node.
        .bytes(".")
        .compile_well_known_types(true)
        // Encoding must give the same bytes every time, versions are hashes of them.
        .btree_map(".")
        .build_transport(false)
        .include_file("proto.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
