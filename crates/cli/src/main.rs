//! The `stillmesh` command. Everything is in the library; see `stillmesh_cli::main`.

use std::process::ExitCode;

fn main() -> ExitCode {
    stillmesh_cli::main()
}
