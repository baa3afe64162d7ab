//! The controller as a program of its own.

fn main() -> anyhow::Result<()> {
    stillmesh_controller::main(std::env::args().skip(1))
}
