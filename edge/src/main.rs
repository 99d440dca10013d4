//! tmp
fn main() {
    print!("{}", brokertuner_edge::config::Config::default_file());
}
