//! What stands behind `-o`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use blockdev::Engine;
use dbfs_fuse::MountConfig;

use crate::size;

/// Smallest page cache in bytes: some of the largest writes at once must fit.
const MIN_CACHE: u64 = 4 << 20;

/// Options of a mount.
#[derive(Clone, Debug)]
pub struct Options {
    /// Change nothing on the volume.
    pub read_only: bool,
    /// For other users too; by default only if root mounts.
    pub allow_other: Option<bool>,
    /// The kernel checks permissions.
    pub default_permissions: bool,
    /// No device nodes.
    pub nodev: bool,
    /// No set-user-id.
    pub nosuid: bool,
    /// No programs.
    pub noexec: bool,
    /// No access times.
    pub noatime: bool,
    /// Every write is O_SYNC.
    pub sync: bool,
    /// Open files cached where direct handles could be had.
    pub cached_opens: bool,
    /// Record all writes of the device to this file.
    pub record: Option<PathBuf>,
    /// The daemon's messages go to this file.
    pub log: Option<PathBuf>,
    /// How requests reach the device.
    pub engine: Engine,
    /// Page cache in bytes.
    pub cache: Option<usize>,
    /// Threads that serve requests.
    pub threads: Option<usize>,
    /// Greatest age of changes that nobody has synced.
    pub commit: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_other: None,
            default_permissions: true,
            nodev: false,
            nosuid: false,
            noexec: false,
            noatime: false,
            sync: false,
            cached_opens: false,
            record: None,
            log: None,
            engine: Engine::Auto,
            cache: None,
            threads: None,
            commit: None,
        }
    }
}

impl Options {
    /// Parses lists of options, each separated by commas; a later one wins over an earlier one.
    pub fn parse(lists: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for option in lists.iter().flat_map(|l| l.split(',')).filter(|o| !o.is_empty()) {
            match option.split_once('=') {
                Some((name, value)) => options.set_value(name, value)?,
                None => options.set_flag(option)?,
            }
        }
        Ok(options)
    }

    fn set_flag(&mut self, name: &str) -> Result<()> {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = Some(true),
            "default_permissions" => self.default_permissions = true,
            "nodev" => self.nodev = true,
            "dev" => self.nodev = false,
            "nosuid" => self.nosuid = true,
            "suid" => self.nosuid = false,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "noatime" => self.noatime = true,
            // What dbfs does anyway.
            "relatime" | "atime" => self.noatime = false,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "cached_opens" => self.cached_opens = true,
            // For mount(8) and fstab(5), not for us.
            "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "nouser" => {}
            x if x.starts_with("x-") => {}
            _ => bail!("unknown mount option {name:?}; `dbfs mount --help` lists the options"),
        }
        Ok(())
    }

    fn set_value(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = || format!("in mount option \"{name}={value}\"");
        match name {
            "record" => self.record = Some(value.into()),
            "log" => self.log = Some(value.into()),
            "engine" => self.engine = engine(value).with_context(wrong)?,
            "cache" => {
                let bytes = size::parse(value).map_err(|e| anyhow!(e)).with_context(wrong)?;
                if bytes < MIN_CACHE {
                    return Err(anyhow!("it must be at least {}", size::show(MIN_CACHE))).with_context(wrong);
                }
                self.cache = Some(usize::try_from(bytes).with_context(wrong)?);
            }
            "threads" => {
                let threads: usize = value.parse().with_context(wrong)?;
                if !(1..=1024).contains(&threads) {
                    return Err(anyhow!("there can be 1 to 1024 threads")).with_context(wrong);
                }
                self.threads = Some(threads);
            }
            "commit" => {
                let seconds: f64 = value.parse().with_context(wrong)?;
                if !(0.01..=3600.0).contains(&seconds) {
                    return Err(anyhow!("it must be from 0.01 to 3600 seconds")).with_context(wrong);
                }
                self.commit = Some(Duration::from_secs_f64(seconds));
            }
            x if x.starts_with("x-") => {}
            _ => bail!("unknown mount option \"{name}={value}\"; `dbfs mount --help` lists the options"),
        }
        Ok(())
    }

    /// What the FUSE adapter has to know of them.
    pub fn mount_config(&self, source: &str) -> MountConfig {
        let mut config = MountConfig::new(source);
        config.read_only = self.read_only;
        config.allow_other = self.allow_other.unwrap_or(config.allow_other);
        config.default_permissions = self.default_permissions;
        config.nodev = self.nodev;
        config.nosuid = self.nosuid;
        config.noexec = self.noexec;
        config.noatime = self.noatime;
        config.sync = self.sync;
        config.cached_opens = self.cached_opens;
        config.threads = self.threads.unwrap_or(config.threads);
        config
    }
}

fn engine(value: &str) -> Result<Engine> {
    match value {
        "auto" => Ok(Engine::Auto),
        "uring" => Ok(Engine::Uring),
        "pread" => Ok(Engine::Pread),
        _ => bail!("the engine is auto, uring or pread"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lists: &[&str]) -> Result<Options> {
        Options::parse(&lists.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_and_values() {
        let o = parse(&["ro,noexec,nodev", "dev,cache=512M,threads=3,commit=0.5,engine=pread,log=/tmp/l"])
            .unwrap();
        assert!(o.read_only && o.noexec && !o.nodev);
        assert_eq!((o.cache, o.threads), (Some(512 << 20), Some(3)));
        assert_eq!(o.commit, Some(Duration::from_millis(500)));
        assert_eq!((o.engine, o.log), (Engine::Pread, Some("/tmp/l".into())));
        let o = parse(&["", "defaults,nofail,x-systemd.automount,x-a=b,_netdev,relatime"]).unwrap();
        assert!(!o.read_only && o.default_permissions);
    }

    #[test]
    fn wrong_ones_are_named() {
        let wrong = [
            "frob",
            "frob=1",
            "cache=big",
            "cache=64K",
            "threads=0",
            "threads=x",
            "commit=-1",
            "commit=NaN",
            "engine=steam",
        ];
        for option in wrong {
            let error = format!("{:#}", parse(&["rw", option]).unwrap_err());
            assert!(error.contains(option), "{error}");
        }
    }
}
