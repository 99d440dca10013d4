//! `edge helper`.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use brokertuner_edge::config::{Broker, Config};
use brokertuner_edge::helper::{Helper, serve, serve_for_ever};
use brokertuner_edge::site::{Environment, Site};
use nix::unistd::Group;

use super::rights::agent_user;

pub(super) fn helper(config: &Config, listen: Option<&Path>) -> anyhow::Result<ExitCode> {
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
    let user = agent_user(&config)?;
    let helper = Helper { broker: site.broker, paths: site.paths, user_id: user.uid.as_raw() };
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
