//! `edge helper`.

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use brokertuner_core::Envelope;
use brokertuner_edge::config::{Broker, Config};
use brokertuner_edge::helper::{Helper, serve, serve_for_ever};
use brokertuner_edge::site::{Environment, Site};
use nix::unistd::{Group, geteuid};

use super::rights::agent_user;

pub(super) fn helper(
    file: &Path,
    config: &Config,
    listen: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    only_roots(file)?;
    // Only the parts that its own configuration names: no model, no connection.
    let mut config = config.clone();
    config.helper.r#use = false;
    // It never logs in anywhere, and may not even read what the agent logs in with.
    config.broker = Broker {
        drop_in: config.broker.drop_in.clone(),
        main_conf: config.broker.main_conf.clone(),
        database: config.broker.database.clone(),
        port: config.broker.port,
        ..Broker::default()
    };
    let site = Site::look(&config, &Environment::default())?;
    // What the broker's files take from the agent counts for the agent: to undo a change it may have
    // to write what was there before they did.
    config.broker.main_conf = PathBuf::new();
    let opted_in = Site::look(&config, &Environment::default())?.envelope.opted_in;
    let envelope = Envelope { opted_in, ..site.envelope };
    let user = agent_user(&config)?;
    let user_id = user.uid.as_raw();
    let helper = Helper { broker: site.broker, paths: site.paths, envelope, user_id };
    let Some(path) = listen else {
        let socket = std::io::stdin().as_fd().try_clone_to_owned();
        let stream = UnixStream::from(socket.context("cannot take over the connection on stdin")?);
        serve(&helper, &stream).context("the request was not answered (stdin must be a connection, as from brokertuner-helper.socket; or use --listen)")?;
        return Ok(ExitCode::SUCCESS);
    };
    let shown = path.display();
    // One that was left behind by a helper that was killed; a living one is not disturbed.
    if UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {shown}"))?;
    let group = Group::from_gid(user.gid).ok().flatten().map_or(user.gid, |group| group.gid);
    nix::unistd::chown(path, None, Some(group))
        .with_context(|| format!("cannot hand {shown} on"))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))
        .with_context(|| format!("cannot open {shown} to its group"))?;
    Err(serve_for_ever(&helper, &listener)).context("cannot take connections")
}

/// Whoever may write the configuration tells the helper which commands to run with its rights.
fn only_roots(file: &Path) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let file = std::fs::canonicalize(file).with_context(|| format!("{}", file.display()))?;
    for path in [Some(&*file), file.parent()].into_iter().flatten() {
        let found = std::fs::metadata(path).with_context(|| format!("{}", path.display()))?;
        // A sticky directory lets nobody replace another's file.
        let is_open = found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0;
        if found.uid() != 0 || is_open {
            let shown = path.display();
            bail!(
                "{shown}: others than root may write it, and would have root's rights by the helper; chown root {shown} and chmod go-w {shown}"
            );
        }
    }
    Ok(())
}
