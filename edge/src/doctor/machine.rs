//! Files, rights, and the ways to reload and restart.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use brokertuner_core::Knob;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{AccessFlags, Pid, access};

use super::Check;
use crate::agent::Lock;
use crate::config::Config;
use crate::control::{Broker as _, Flaw, Method};
use crate::fs::{RealFiles, dir_of};
use crate::model::ModelSource;
use crate::orders::Restraint;
use crate::service::{Listen, Token};
use crate::site::{Environment, Site};
use crate::state::StateStore;

/// What is the agent's own: its directory, its memory, its model, its token.
pub(super) fn own_files(config: &Config, environment: &Environment, checks: &mut Vec<Check>) {
    let dir = &config.agent.state_dir;
    let shown = dir.display();
    checks.push(if may(dir, AccessFlags::W_OK | AccessFlags::X_OK) {
        Check::good("state_dir", format!("{shown} can be written"))
    } else {
        let remedy = format!(
            "as root: install -d -o {} {shown}; or run edge as a user who may write there",
            user()
        );
        Check::wrong(
            "state_dir",
            format!("{shown} is not there, or this user may not write there"),
            remedy,
        )
    });
    match StateStore::in_dir(dir).load(&RealFiles) {
        Ok(state) => {
            checks.push(match Restraint::of(&state, &config.kill_switch()) {
                Some(restraint) => Check::note("standing", restraint.to_string(), ""),
                None if Lock::is_taken(dir) => Check::good("standing", "an agent is at work"),
                None => Check::note("standing", "no agent is running", "edge run"),
            });
            if state.failures > 0 {
                let found = format!("{} changes in a row had to be taken back", state.failures);
                checks.push(Check::note("failures", found, "edge explain; then edge resume"));
            }
        }
        Err(error) => checks.push(Check::error("memory", &error)),
    }
    let path = &config.model.path;
    let model = ModelSource::of(config).and_then(|source| source.verify(path));
    checks.push(match model {
        Ok(model) => {
            let signed = match model.signed_by {
                Some(key) => format!(", signed by {}", key.display()),
                None => String::new(),
            };
            Check::good("model", format!("{} is sound{signed}", path.display()))
        }
        Err(error) => Check::error("model", &error),
    });
    if Listen::parse(&config.http.listen).is_some() {
        let file = &config.http.token_file;
        checks.push(if file.as_os_str().is_empty() {
            Check::note("http", "without http.token_file nothing can be set over HTTP", "")
        } else {
            match environment.file("http.token_file", file.clone()) {
                Ok(file) => match Token::read(&file) {
                    Ok(_) => Check::good("http", "the token can be read"),
                    Err(error) => Check::error("http", &error),
                },
                Err(error) => Check::error("http", &error),
            }
        });
    }
}

/// Files of secrets that everyone on this machine may read.
pub(super) fn secrets(config: &Config, environment: &Environment, checks: &mut Vec<Check>) {
    let broker = &config.broker;
    for (key, file) in
        [("broker.password_file", &broker.password_file), ("broker.key_file", &broker.key_file)]
    {
        // One that is not there, or no credential, is told where it is used.
        let Ok(file) = environment.file(key, file.clone()) else { continue };
        let mode = std::fs::metadata(&file).map(|found| found.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o007 != 0) {
            let shown = file.display();
            let found = format!("{key}: {shown} is open to everyone on this machine");
            checks.push(Check::wrong("secrets", found, format!("chmod o= {shown}")));
        }
    }
}

/// The include directory: rights, order, and who else has a say.
pub(super) fn broker_files(site: &Site, checks: &mut Vec<Check>) {
    let drop_in = &site.paths.drop_in;
    let dir = dir_of(drop_in);
    let shown = dir.display();
    checks.push(match &site.broker.finder.helper {
        Some(helper) => match helper.process() {
            Ok(_) => Check::good("helper", format!("answers on {}", helper.socket.display())),
            Err(error) => Check::error("helper", &error),
        },
        None if may(dir, AccessFlags::W_OK | AccessFlags::X_OK) => {
            Check::good("include_dir", format!("{shown} can be written"))
        }
        None => {
            let remedy = format!(
                "as root: setfacl -m u:{}:rwx {shown}; or run edge as root, or beside the helper",
                user()
            );
            Check::wrong("include_dir", format!("this user may not write in {shown}"), remedy)
        }
    });
    // The broker reads as its own user once it has dropped root's rights.
    let mode = |path: &Path| std::fs::metadata(path).map(|found| found.permissions().mode()).ok();
    if mode(dir).is_some_and(|mode| mode & 0o005 != 0o005) {
        let found = format!(
            "{shown} is closed to other users: a reload fails where the broker does not run as root"
        );
        let remedy = format!("chmod o+rx {shown}, or see that the broker's user may read it");
        checks.push(Check::note("drop_in", found, remedy));
    }
    if mode(drop_in).is_some_and(|mode| mode & 0o004 == 0) {
        let shown = drop_in.display();
        checks.push(Check::wrong(
            "drop_in",
            format!("{shown} is closed to the broker"),
            format!("chmod 644 {shown}"),
        ));
    }
    let lines = &site.elsewhere.lines;
    for line in lines {
        let remedy = if line.overrides {
            format!("edge leaves {} alone; to have it tuned, remove that line", line.knob)
        } else {
            format!(
                "edge leaves {0} alone; to have it tuned, set tune = \"yes\" under [knobs.{0}]",
                line.knob
            )
        };
        checks.push(Check::note("elsewhere", line.to_string(), remedy));
    }
    if lines.is_empty() {
        checks.push(Check::good("elsewhere", "no other file sets an option of ours"));
    }
    if site.main_conf.is_none() {
        let found = "what overrides the drop-in is not known";
        checks.push(Check::note("main_conf", found, "set broker.main_conf"));
    }
    if let Some(Flaw { found, remedy }) = site.other_broker() {
        checks.push(Check::wrong("main_conf", found, remedy));
    }
    if site.envelope.opted_in.is_empty() {
        let found = "no option may be changed";
        checks.push(Check::wrong(
            "options",
            found,
            "see the lines above, control.reload and control.restart",
        ));
    }
}

/// Whether the broker can be reloaded and restarted.
pub(super) fn ways(config: &Config, site: &Site, checks: &mut Vec<Check>) {
    for (check, method) in [("reload", &site.broker.reload), ("restart", &site.broker.restart)] {
        checks.push(match method {
            Method::None => {
                let found =
                    format!("control.{check} = \"none\": options that need it are left alone");
                Check::note(check, found, "")
            }
            method => match method.flaw(check) {
                None => Check::good(check, format!("by {method}")),
                // A program of root's need not be there for the agent's user.
                Some(flaw) if config.helper.r#use => {
                    let found = format!("{}, as far as this user can see", flaw.found);
                    Check::note(check, found, format!("see as root, who runs it; {}", flaw.remedy))
                }
                Some(flaw) => Check::wrong(check, flaw.found, flaw.remedy),
            },
        });
    }
    if let Some(check) = signals(site) {
        checks.push(check);
    }
    if config.decide.restarts_per_hour_max == 0 || config.decide.restarts_per_day_max == 0 {
        let found = "the restart budget is 0: options that need a restart are never changed";
        checks.push(Check::note("budget", found, ""));
    }
}

/// Without a helper this user signals the broker: SIGHUP for a reload, SIGUSR1 to have it save before
/// a restart.
fn signals(site: &Site) -> Option<Check> {
    if site.broker.finder.helper.is_some() {
        return None;
    }
    // Where it is not known, another line says so.
    let pid = site.broker.process().ok()?.pid;
    let is_saved = site.envelope.site.get(Knob::Persistence) != 0 && site.paths.database.is_some();
    if site.broker.reload != Method::Signal && !is_saved {
        return None;
    }
    let remedy = "run edge as root or as the broker's user, or beside the helper";
    match kill(Pid::from_raw(pid), None) {
        Err(Errno::EPERM) => {
            let found = format!(
                "this user may not signal the broker (process {pid}): no reload by SIGHUP, and no restart while persistence is on"
            );
            Some(Check::wrong("signals", found, remedy))
        }
        _ => Some(Check::good("signals", format!("process {pid} may be signalled"))),
    }
}

/// Asked of the kernel, for the user who runs this.
fn may(path: &Path, flags: AccessFlags) -> bool {
    access(path, flags).is_ok()
}

fn user() -> String {
    nix::unistd::geteuid().to_string()
}
