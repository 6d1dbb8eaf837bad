//! `flashsale healthcheck`: asks `/readyz` of the process on this machine, for containers that have no other HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Failure, print};
use crate::config::Config;
use crate::limits;

pub(super) async fn run(config: Config) -> Result<(), Failure> {
    let address = reachable(config.admin_addr);
    let asked = tokio::time::timeout(limits::HEALTHCHECK_DEADLINE, ask(address)).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(Failure::unavailable_because(format!("could not ask {address}: {error}"))),
        Err(_) => return Err(Failure::unavailable_because(format!("no answer in time from {address}"))),
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    print(body)?;
    if head.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(Failure::unavailable_because("not ready")) }
}

/// A listener on every address is asked on this machine's own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let question = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(limits::HEALTHCHECK_ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
