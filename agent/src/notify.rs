//! Tells systemd how the agent is, where it asks for that (`Type=notify`, `WatchdogSec=`). Source: sd_notify(3).

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr, net::UnixDatagram},
    },
    path::Path,
    time::Duration,
};

/// The service manager's socket; quiet where there is none.
#[derive(Debug)]
pub struct Notifier {
    address: Option<SocketAddr>,
    /// How often the service manager wants to hear of the agent at least.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads NOTIFY_SOCKET and WATCHDOG_USEC.
    pub fn from_environment() -> Notifier {
        let ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let usec = std::env::var("WATCHDOG_USEC").ok().filter(|_| ours).and_then(|usec| usec.parse().ok());
        Notifier::new(std::env::var_os("NOTIFY_SOCKET"), usec)
    }

    fn new(socket: Option<OsString>, watchdog_usec: Option<u64>) -> Notifier {
        let address = socket.and_then(|socket| address(&socket).ok());
        let watchdog = watchdog_usec.filter(|usec| *usec > 0).map(Duration::from_micros);
        Notifier { address, watchdog }
    }

    /// How often to say that the agent is alive: twice as often as is asked for.
    pub fn watchdog_every(&self) -> Option<Duration> {
        self.address.as_ref().and(self.watchdog).map(|every| every / 2)
    }

    /// The agent serves.
    pub fn ready(&self) {
        self.send("READY=1\nSTATUS=Serving");
    }

    /// The agent is alive.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The agent reads its config again; [`Notifier::ready`] ends it. systemd wants the time with it (Type=notify-reload).
    pub fn reloading(&self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// The agent stops; `why` is shown by `systemctl status`.
    pub fn stopping(&self, why: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={why}"));
    }

    /// The agent needs that much longer to start or stop.
    pub fn extend(&self, by: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
    }

    fn send(&self, message: &str) {
        let Some(address) = &self.address else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(message.as_bytes(), address));
        if let Err(err) = sent {
            tracing::warn!(%err, "the service manager's socket takes no message");
        }
    }
}

fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(Path::new(socket)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.into()), Some(3_000_000));
        assert_eq!(notifier.watchdog_every(), Some(Duration::from_millis(1500)));
        notifier.ready();
        notifier.stopping("by SIGTERM");
        let mut buffer = [0; 200];
        let mut next = || {
            let len = manager.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..len]).into_owned()
        };
        assert_eq!(next(), "READY=1\nSTATUS=Serving");
        assert_eq!(next(), "STOPPING=1\nSTATUS=by SIGTERM");
    }

    #[test]
    fn without_a_socket_it_is_quiet() {
        let notifier = Notifier::new(None, Some(1_000_000));
        assert_eq!(notifier.watchdog_every(), None);
        notifier.ready();
    }
}
