//! Prints the CustomResourceDefinitions of one file of `deploy/crds`, or writes all of them into a directory:
//! `cargo run -p stillmesh-k8s --example crds -- deploy/crds`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "deploy/crds".to_owned()));
    for (name, text) in stillmesh_k8s::istio::crd_files()? {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(())
}
