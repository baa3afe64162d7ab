//! The waypoint as a program of its own.

fn main() -> anyhow::Result<()> {
    stillmesh_waypoint::main()
}
