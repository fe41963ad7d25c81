//! A whole cloud: its front ends listen, its machines come and go.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use peerpods_cloud_api::settings::local::LocalSettings;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::cloud::Options;
use crate::{Cloud, Machines, admin, dhcp, ec2, metadata};

/// How a cloud is served.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// How it behaves.
    pub cloud: Options,
    /// Where EC2's API listens; port 0 is any.
    pub ec2: SocketAddr,
    /// Where the admin API listens.
    pub admin: SocketAddr,
    /// The machines behind; `None` are none.
    pub machines: Option<LocalSettings>,
    /// How long a DHCP lease lasts.
    pub lease: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { cloud: Options::default(), ec2: any, admin: any, machines: None, lease: Duration::from_secs(3600) }
    }
}

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Addresses {
    /// EC2's API.
    pub ec2: String,
    /// The admin API.
    pub admin: String,
}

/// A cloud that listens.
#[derive(Debug)]
pub struct Server {
    cloud: Cloud,
    addresses: Addresses,
    machines: Option<Machines>,
    tasks: JoinSet<std::io::Result<()>>,
}

impl Server {
    /// Listens everywhere, or nowhere.
    pub async fn start(options: ServerOptions) -> Result<Self> {
        let gateway = options.machines.as_ref().map(|settings| settings.gateway);
        let machines = match options.machines {
            Some(settings) => Some(Machines::open(settings).await.map_err(anyhow::Error::msg).context("machines")?),
            None => None,
        };
        let (cloud, driver) = Cloud::new(options.cloud, machines.clone());
        let mut tasks = JoinSet::new();
        let listen = async |address: SocketAddr| TcpListener::bind(address).await.with_context(|| format!("listen on {address}"));
        let (ec2, admin) = (listen(options.ec2).await?, listen(options.admin).await?);
        let url = |listener: &TcpListener| Ok::<_, std::io::Error>(format!("http://{}", listener.local_addr()?));
        let addresses = Addresses { ec2: url(&ec2)?, admin: url(&admin)? };
        if let Some(gateway) = gateway {
            let at = SocketAddr::new(IpAddr::V4(metadata::ADDRESS), 80);
            let listener = metadata::listen(at).with_context(|| format!("listen on {at}, the metadata service"))?;
            let leases = dhcp::listen().await.context("listen on UDP port 67, DHCP")?;
            tasks.spawn(metadata::serve(listener, cloud.clone()));
            tasks.spawn(dhcp::serve(leases, cloud.clone(), dhcp::Network { gateway, lease: options.lease }));
        }
        tasks.spawn(async move {
            driver.run().await;
            Ok(())
        });
        tasks.spawn(ec2::serve(ec2, cloud.clone()));
        tasks.spawn(admin::serve(admin, cloud.clone()));
        Ok(Self { cloud, addresses, machines, tasks })
    }

    /// The cloud itself.
    pub fn cloud(&self) -> &Cloud {
        &self.cloud
    }

    /// Where it is.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until `stop` is done or a front end fails, then deletes all machines.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<()> {
        let result = tokio::select! {
            () = stop => Ok(()),
            ended = self.tasks.join_next() => match ended {
                Some(Ok(Err(error))) => Err(anyhow::Error::from(error)),
                Some(Err(error)) => Err(anyhow::Error::from(error)),
                Some(Ok(Ok(()))) | None => Ok(()),
            },
        };
        self.tasks.shutdown().await;
        if let Some(machines) = &self.machines {
            machines.clear().await.map_err(anyhow::Error::msg).context("deleting the machines")?;
        }
        result
    }
}
