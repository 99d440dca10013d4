//! Whose rights a command runs with.

use std::ffi::CString;

use anyhow::{Context, anyhow};
use brokertuner_edge::config::Config;
use nix::unistd::{User, geteuid, initgroups, setgid, setuid};

/// The agent's user, beside a helper.
pub(super) fn agent_user(config: &Config) -> anyhow::Result<User> {
    let name = &config.helper.user;
    let user = User::from_name(name).context("cannot look up helper.user")?;
    user.ok_or_else(|| anyhow!("helper.user: there is no user {name}; make one, or correct it"))
}

/// Goes on as the agent's user where root gives a command and a helper has the rights: what the
/// command writes into the state directory stays the agent's.
pub(super) fn drop_to_agent(config: &Config) -> anyhow::Result<()> {
    if !config.helper.r#use || !geteuid().is_root() {
        return Ok(());
    }
    let user = agent_user(config)?;
    let name = CString::new(user.name.as_str()).context("helper.user")?;
    initgroups(&name, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .with_context(|| format!("cannot go on as the user {} (helper.user)", user.name))
}
