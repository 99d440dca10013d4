//! Applies random settings to a live broker for ever, as `edge run` does, for the test that kills
//! it: `apply-loop CONFIG SEED`.
//!
//! Ends what was cut short first. Announces each change on standard output before it begins, and
//! says how it ended. Ends between two changes once standard input is closed.

use std::error::Error;
use std::io::{Read as _, Write as _, stdin, stdout};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use brokertuner_core::knobs::Apply;
use brokertuner_core::settings::Action;
use brokertuner_core::{Envelope, Settings, render};
use brokertuner_edge::agent::Lock;
use brokertuner_edge::apply::Applier;
use brokertuner_edge::config::Config;
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::ready;
use brokertuner_edge::site::{Environment, Site};
use brokertuner_edge::state::How;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let config = arguments.next().ok_or("usage: apply-loop CONFIG SEED")?;
    let seed = arguments.next().ok_or("the seed is missing")?.parse()?;
    let site = Site::look(&Config::load(Path::new(&config))?, &Environment::default())?;
    // Figures of a small site, so that no option is held for want of one.
    let envelope = Envelope {
        heap_bytes_max: Some(4 << 20),
        packet_bytes_max: Some(16 << 10),
        ..site.envelope
    };
    let _lock = Lock::take(&site.paths.state_dir)?;
    let (files, broker) = (Box::new(RealFiles), Box::new(site.broker));
    let (applier, damage) = Applier::open(files, broker, site.paths)?;
    if let Some(damage) = damage {
        return Err(damage.into());
    }
    let mut applier = applier.with_ready_timeout(site.ready_timeout);
    say(&format!("recovered {:?}", applier.recover()?))?;

    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let stopped = watch_stdin();
    while !stopped.load(Ordering::Relaxed) {
        if let Ok(ready) = ready::wait(applier.broker(), None, site.ready_timeout) {
            applier.observe(ready, envelope.opted_in)?;
        }
        let (to, how) = change(applier.written()?.unwrap_or_default(), &envelope, &mut rng);
        say(&format!("begin {how} {}", one_line(to)))?;
        match applier.apply(to, how, &envelope.site) {
            Ok(_) => {
                applier.mark_good()?;
                say("end well")?;
            }
            Err(error) => say(&format!("end {error}"))?,
        }
    }
    Ok(())
}

/// True once standard input was closed.
fn watch_stdin() -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stopped);
    thread::spawn(move || {
        // Whatever ends the reading: nobody holds the other end any more.
        let _ = stdin().read_to_end(&mut Vec::new());
        stop.store(true, Ordering::Relaxed);
    });
    stopped
}

/// What the controller could want next: reloadable options by a reload, else all by a restart.
fn change(written: Settings, envelope: &Envelope, rng: &mut Pcg64Mcg) -> (Option<Settings>, How) {
    let action: Action = std::array::from_fn(|_| rng.random_range(-127..=127));
    let wanted = Settings::decode(&action, envelope);
    let reloadable = written.with_those_of(&wanted, Apply::Reload);
    if rng.random_range(0..8) == 0 {
        (None, How::Restart)
    } else if rng.random() && envelope.check(&reloadable).is_empty() {
        (Some(reloadable), How::Reload)
    } else {
        (Some(wanted), How::Restart)
    }
}

/// The drop-in's text with `|` for its newlines; `-` for no drop-in.
fn one_line(settings: Option<Settings>) -> String {
    settings.map_or_else(|| "-".into(), |settings| render::render(&settings).replace('\n', "|"))
}

/// At once: the next moment may be the last.
fn say(line: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}
