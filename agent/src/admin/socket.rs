//! The admin socket: who may open it, and who is answered.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{Router, http::StatusCode};
use nix::unistd::{Gid, Group, Uid, User};
use tokio::net::{UnixListener, UnixStream};

use super::{
    Node, Reloader, Server,
    routes::{Admin, error, routes},
    serve,
};

/// The group whose members may do what root may, where there is one.
const GROUP: &str = "moa";

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on the admin socket {}: {source}; name another --run-dir", path.display())]
pub struct SocketError {
    /// Its path.
    path: PathBuf,
    /// Why.
    #[source]
    source: io::Error,
}

/// Listens on a socket that root, this user and the group `moa` may open.
///
/// # Errors
/// The kernel refused.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    listen(path).map_err(|source| SocketError { path: path.to_owned(), source })
}

/// Answers operators.
pub fn serve_admin(listener: UnixListener, node: Arc<Node>, reloader: Reloader) -> Server {
    let allowed = routes(Admin { node, reloader });
    serve(listener, move |stream: &UnixStream| match refusal(stream) {
        None => allowed.clone(),
        Some(why) => Router::new().fallback(move || async move { error(StatusCode::FORBIDDEN, why) }),
    })
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    match group().map(|group| chown(path, None, Some(group.gid.as_raw()))) {
        // A user who is no member can't give the socket to the group, and then the group is not asked for.
        Some(Err(error)) if error.kind() != ErrorKind::PermissionDenied => Err(error),
        _ => Ok(listener),
    }
}

/// Why the process at the other end is not answered, if it is not.
fn refusal(stream: &UnixStream) -> Option<String> {
    let peer = match stream.peer_cred() {
        Ok(peer) => peer,
        Err(error) => return Some(format!("the kernel does not say who you are: {error}")),
    };
    let uid = Uid::from_raw(peer.uid());
    let own = Uid::effective();
    if uid.is_root() || uid == own || group().is_some_and(|group| is_member(uid, Gid::from_raw(peer.gid()), &group)) {
        return None;
    }
    Some(format!(
        "user {uid} may not ask this agent: be root, the agent's own user ({own}), or a member of the group {GROUP} \
         (usermod -aG {GROUP} NAME)"
    ))
}

fn group() -> Option<Group> {
    Group::from_name(GROUP).ok().flatten()
}

fn is_member(uid: Uid, gid: Gid, group: &Group) -> bool {
    let user = User::from_uid(uid).ok().flatten();
    gid == group.gid || user.is_some_and(|user| user.gid == group.gid || group.mem.contains(&user.name))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn members_are_those_of_the_group_or_with_it_as_their_own() {
        let root = User::from_uid(Uid::from_raw(0)).expect("readable").expect("there is root");
        let group =
            |mem: Vec<String>, gid| Group { name: GROUP.into(), passwd: CString::default(), gid: Gid::from_raw(gid), mem };
        let (uid, gid) = (root.uid, Gid::from_raw(4_000_000));
        assert!(is_member(uid, gid, &group(vec![root.name], 4_000_001)));
        assert!(is_member(uid, gid, &group(vec![], 4_000_000)));
        assert!(is_member(uid, gid, &group(vec![], root.gid.as_raw())));
        assert!(!is_member(uid, gid, &group(vec!["nobody-else".into()], 4_000_001)));
    }
}
