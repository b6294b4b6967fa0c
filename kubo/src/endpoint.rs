//! Where Kubo's RPC listens, parsed once.

use std::{fmt, path::PathBuf, str::FromStr};

/// Kubo's RPC address: TCP or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Host (a name or an address, IPv6 without brackets) and port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Path of a Unix socket.
    Unix(PathBuf),
}

/// A text that names no endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointError {
    text: String,
    why: &'static str,
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is no address of a Kubo RPC: {}; write http://127.0.0.1:5001, unix:/run/ipfs/api.sock, or the multiaddr of Addresses.API in \
             Kubo's config",
            self.text.escape_debug(),
            self.why
        )
    }
}

impl std::error::Error for EndpointError {}

/// Longest path of a Unix socket that Linux takes, without the closing NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// `http://HOST:PORT`, `HOST:PORT`, `unix:/PATH`, or a multiaddr (`/ip4/…/tcp/…`, `/ip6/…`, `/dns…/…`, `/unix/…`), as Kubo's `api` file has it.
    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let text = text.trim();
        parse(text).map_err(|why| EndpointError { text: text.chars().take(200).collect(), why })
    }
}

fn parse(text: &str) -> Result<Endpoint, &'static str> {
    if text.starts_with("https://") {
        return Err(
            "Kubo's RPC speaks plain HTTP; reach another host through a tunnel, or a proxy on this one that speaks TLS",
        );
    }
    if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
        return unix(path);
    }
    if let Some(rest) = text.strip_prefix("/unix/") {
        return unix(&format!("/{}", rest.trim_start_matches('/')));
    }
    if let Some(multiaddr) = text.strip_prefix('/') {
        let parts: Vec<&str> = multiaddr.split('/').collect();
        let (protocol, host, port) = match parts.as_slice() {
            [protocol, host, "tcp", port] | [protocol, host, "tcp", port, "http"] => (*protocol, *host, *port),
            _ => return Err("the multiaddr is neither /ip4|ip6|dns/HOST/tcp/PORT nor /unix/PATH"),
        };
        let fits = match protocol {
            "ip4" => host.parse::<std::net::Ipv4Addr>().is_ok(),
            "ip6" => host.parse::<std::net::Ipv6Addr>().is_ok(),
            "dns" | "dns4" | "dns6" => true,
            _ => return Err("the multiaddr is neither /ip4|ip6|dns/HOST/tcp/PORT nor /unix/PATH"),
        };
        return if fits { tcp(host, port) } else { Err("the address is not of the kind that the multiaddr says") };
    }
    let authority = text.strip_prefix("http://").unwrap_or(text);
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.contains("://") {
        return Err("only http:// and unix: are known");
    }
    if authority.contains('@') {
        return Err("a user or password does not belong in the address; configure authorization apart");
    }
    let (host, port) = authority.rsplit_once(':').ok_or("the port is missing")?;
    match host.strip_prefix('[') {
        Some(inner) => {
            let host = inner.strip_suffix(']').ok_or("a bracket is not closed")?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("what is in brackets is no IPv6 address");
            }
            tcp(host, port)
        }
        None if host.contains(':') => Err("an IPv6 address goes in brackets"),
        None => tcp(host, port),
    }
}

fn tcp(host: &str, port: &str) -> Result<Endpoint, &'static str> {
    let port = match port.parse::<u16>() {
        Ok(0) | Err(_) => return Err("the port is not a number from 1 to 65535"),
        Ok(port) => port,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(plain) {
        return Err("the host is empty, or has characters that no host has (a path does not belong here)");
    }
    Ok(Endpoint::Tcp { host: host.to_owned(), port })
}

fn unix(path: &str) -> Result<Endpoint, &'static str> {
    if !path.starts_with('/') {
        return Err("the path of the Unix socket is not absolute");
    }
    if path.len() > UNIX_PATH_BYTES_MAX || path.contains('\0') {
        return Err("the path of the Unix socket is longer than Linux takes (107 bytes), or has a NUL in it");
    }
    Ok(Endpoint::Unix(PathBuf::from(path)))
}

impl Endpoint {
    /// What goes into the Host header. Kubo takes any.
    pub(crate) fn authority(&self) -> String {
        match self {
            Endpoint::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Endpoint::Tcp { host, port } => format!("{host}:{port}"),
            Endpoint::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { .. } => write!(f, "http://{}", self.authority()),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_in_every_form_that_operators_have() {
        let tcp = |host: &str, port| Endpoint::Tcp { host: host.to_owned(), port };
        for (text, wanted) in [
            ("http://127.0.0.1:5001", tcp("127.0.0.1", 5001)),
            ("http://kubo.local:5001/", tcp("kubo.local", 5001)),
            ("localhost:5001", tcp("localhost", 5001)),
            ("http://[::1]:5001", tcp("::1", 5001)),
            ("/ip4/127.0.0.1/tcp/5001\n", tcp("127.0.0.1", 5001)),
            ("/ip6/::1/tcp/5001", tcp("::1", 5001)),
            ("/dns4/kubo/tcp/5001/http", tcp("kubo", 5001)),
            ("unix:/run/ipfs/api.sock", Endpoint::Unix("/run/ipfs/api.sock".into())),
            ("unix:///run/ipfs/api.sock", Endpoint::Unix("/run/ipfs/api.sock".into())),
            ("/unix/run/ipfs/api.sock", Endpoint::Unix("/run/ipfs/api.sock".into())),
        ] {
            assert_eq!(text.parse(), Ok(wanted.clone()), "{text}");
            assert_eq!(wanted.to_string().parse(), Ok(wanted), "{text} as it is shown");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "port is missing"),
            ("https://127.0.0.1:5001", "plain HTTP"),
            ("http://user:pw@host:5001", "password does not belong"),
            ("http://127.0.0.1", "port is missing"),
            ("http://127.0.0.1:0", "1 to 65535"),
            ("http://127.0.0.1:65536", "1 to 65535"),
            ("http://:5001", "host is empty"),
            ("::1:5001", "brackets"),
            ("http://[::1:5001", "bracket is not closed"),
            ("http://host:5001/api", "1 to 65535"),
            ("ho\r\nst:5001", "no host has"),
            ("/ip4/::1/tcp/5001", "not of the kind"),
            ("/ip4/127.0.0.1/udp/5001", "multiaddr"),
            ("unix:run/api.sock", "not absolute"),
            ("ftp://host:21", "only http://"),
        ] {
            let said = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(said.contains(why), "{text:?}: {said}");
            assert!(!said.contains('\n'), "{said}");
        }
        assert!(format!("unix:/{}", "a".repeat(107)).parse::<Endpoint>().is_err());
    }
}
