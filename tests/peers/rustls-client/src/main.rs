//! One HTTP request over TLS: `rustls-client HOST PORT CA-FILE` connects to the loopback address,
//! asks for HOST by SNI, verifies the certificate, and prints the answer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::{pem::PemObject, CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().collect();
    let [_, host, port, ca] = &words[..] else {
        return Err("usage: rustls-client HOST PORT CA-FILE".into());
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.clone())?;
    let client = ClientConnection::new(Arc::new(config), name)?;
    let stream = TcpStream::connect(("127.0.0.1", port.parse()?))?;
    let mut tls = StreamOwned::new(client, stream);
    write!(tls, "GET / HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    if let Err(error) = tls.read_to_end(&mut answer) {
        // Some servers close without close_notify.
        if error.kind() != std::io::ErrorKind::UnexpectedEof {
            return Err(error.into());
        }
    }
    std::io::stdout().write_all(&answer)?;
    Ok(())
}
