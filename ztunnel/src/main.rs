//! The node tunnel as a program of its own.

fn main() -> anyhow::Result<()> {
    stillmesh_ztunnel::main()
}
