//! The workbench: see `host --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    brokertuner_host::cli::main()
}
