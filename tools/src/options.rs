//! What stands behind `-o`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use blockdev::Engine;
use dbfs_fuse::MountConfig;
use fs_core::cache::policy::{PolicyKind, S3FifoOptions, TouchOptions};

use crate::observe::http::{self, Address};
use crate::size;

/// Smallest page cache in bytes: some of the largest writes at once must fit.
const MIN_CACHE: u64 = 4 << 20;

/// What is said about `-o` to those who ask for help.
pub const HELP: &str = "\
Mount options:
  ro, rw                 change nothing on the volume / read and write
  allow_other            let other users in (default if root mounts; who is not
                         root needs user_allow_other in /etc/fuse.conf)
  default_permissions    the kernel checks permissions (always on)
  nodev, nosuid, noexec  as for every file system
  noatime, relatime      never update access times / only if old (default)
  sync                   every write is O_SYNC
  commit=SECONDS         greatest age of changes not synced (default 2)
  cache-size=SIZE, cache=SIZE   page cache (default 256M); see dbfs tune
  cache-policy=s3fifo|touch     which pages stay in it (default s3fifo)
  cache-hot=PERCENT      touch: share of the hot end (default 65)
  cache-shards=N         parts of it with locks of their own (default 16)
  threads=N              threads that serve requests (default 16)
  engine=auto|uring|pread   how requests reach the device
  metrics=ADDR|SOCKET    serve metrics for Prometheus: on a port of the loopback
                         interface, an IP:PORT, or the path of a Unix socket
  log=FILE               where the daemon's messages go (default: the system's
                         log, with --foreground the terminal; DBFS_LOG=debug
                         and the like set the level)
  record=FILE            record every write and flush of the device
  cached_opens           treat O_DIRECT opens as on kernels before 6.6
  remount                change the flags of a live mount (through mount(8))
Options for mount(8), systemd and fstab(5), such as noauto, nofail, user,
_netdev, comment= and x-systemd.*, are taken and left to them.";

/// What to do with an option that nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// An error.
    Refuse,
    /// Nothing (`mount -s`).
    Ignore,
}

/// Options of a mount.
#[derive(Clone, Debug)]
pub struct Options {
    /// Change nothing on the volume.
    pub read_only: bool,
    /// Change a mount that is live.
    pub remount: bool,
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
    /// Which pages stay in the page cache.
    pub cache_policy: Option<PolicyKind>,
    /// Parts of the page cache.
    pub cache_shards: Option<usize>,
    /// Threads that serve requests.
    pub threads: Option<usize>,
    /// Greatest age of changes that nobody has synced.
    pub commit: Option<Duration>,
    /// Where metrics are served.
    pub metrics: Option<Address>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            remount: false,
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
            cache_policy: None,
            cache_shards: None,
            threads: None,
            commit: None,
            metrics: None,
        }
    }
}

impl Options {
    /// Parses lists of options, each separated by commas; a later one wins over an earlier one.
    pub fn parse(lists: &[String], unknown: Unknown) -> Result<Self> {
        let mut options = Self::default();
        let mut hot = None;
        for option in lists.iter().flat_map(|l| l.split(',')).filter(|o| !o.is_empty()) {
            let known = match option.split_once('=') {
                // It has a meaning with a policy that may come behind it.
                Some(("cache-hot", value)) => {
                    hot = Some(percent(value).with_context(|| in_option("cache-hot", value))?);
                    true
                }
                Some((name, value)) => options.set_value(name, value)?,
                None => options.set_flag(option)?,
            };
            if !known && unknown == Unknown::Refuse {
                bail!("unknown mount option {option:?}; `dbfs mount --help` lists the options");
            }
        }
        match (hot, &mut options.cache_policy) {
            (None, _) => {}
            (Some(hot), Some(PolicyKind::Touch(touch))) => touch.hot_percent = hot,
            (Some(hot), _) => bail!("mount option \"cache-hot={hot}\" belongs to cache-policy=touch"),
        }
        Ok(options)
    }

    /// False if there is no such option.
    fn set_flag(&mut self, name: &str) -> Result<bool> {
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
            "diratime" | "nodiratime" | "lazytime" | "nolazytime" | "nostrictatime" | "nomand" => {}
            "strictatime" | "norelatime" => {
                bail!(
                    "mount option {name:?}: dbfs keeps access times as relatime does, or (noatime) not at all"
                )
            }
            "dirsync" => bail!("mount option {name:?}: dbfs has none; fsync of the directory does it"),
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "cached_opens" => self.cached_opens = true,
            "remount" => self.remount = true,
            // Whom mount(8) lets mount; what they mount must not give them more rights.
            "user" | "users" => (self.nodev, self.nosuid, self.noexec) = (true, true, true),
            "owner" | "group" => (self.nodev, self.nosuid) = (true, true),
            // For mount(8) and fstab(5), not for us.
            "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "nouser" | "nousers" | "noowner"
            | "nogroup" | "silent" | "loud" => {}
            _ => return Ok(is_for_others(name)),
        }
        Ok(true)
    }

    /// False if there is no such option.
    fn set_value(&mut self, name: &str, value: &str) -> Result<bool> {
        let wrong = || in_option(name, value);
        match name {
            "record" => self.record = Some(value.into()),
            "log" => self.log = Some(value.into()),
            "engine" => self.engine = engine(value).with_context(wrong)?,
            "cache" | "cache-size" => {
                let bytes = cache_size(value).map_err(|e| anyhow!(e)).with_context(wrong)?;
                self.cache = Some(usize::try_from(bytes).with_context(wrong)?);
            }
            "cache-policy" => {
                self.cache_policy = Some(match value {
                    "touch" => PolicyKind::Touch(TouchOptions::default()),
                    "s3fifo" => PolicyKind::S3Fifo(S3FifoOptions::default()),
                    _ => return Err(anyhow!("the policy is touch or s3fifo")).with_context(wrong),
                });
            }
            "cache-shards" => {
                let shards: usize = value.parse().with_context(wrong)?;
                if !(1..=1024).contains(&shards) {
                    return Err(anyhow!("there can be 1 to 1024 shards")).with_context(wrong);
                }
                self.cache_shards = Some(shards);
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
            "metrics" => self.metrics = Some(http::option(value).with_context(wrong)?),
            "user" | "comment" | "uhelper" | "helper" => {}
            // What the mount is called is the volume's path, and its type fuse.dbfs.
            "fsname" | "subtype" => {}
            _ => return Ok(is_for_others(name)),
        }
        Ok(true)
    }

    /// What the FUSE adapter has to know of them.
    pub fn mount_config(&self, volume: &Path) -> MountConfig {
        let mut config = MountConfig::new(volume);
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

/// Comments of fstab(5), and what systemd reads there.
fn is_for_others(name: &str) -> bool {
    name.starts_with("x-") || name.starts_with("X-")
}

fn in_option(name: &str, value: &str) -> String {
    format!("in mount option \"{name}={value}\"")
}

fn percent(value: &str) -> Result<u8> {
    let percent: u8 = value.parse()?;
    if (1..=99).contains(&percent) { Ok(percent) } else { bail!("it must be from 1 to 99 percent") }
}

/// A size that a page cache can have.
pub fn cache_size(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    check_cache(bytes).map(|()| bytes)
}

/// Whether a page cache can have so many bytes: some of the largest writes must fit, and it must fit the
/// machine.
pub fn check_cache(bytes: u64) -> Result<(), String> {
    if bytes < MIN_CACHE {
        return Err(format!("the page cache must have at least {}", size::show(MIN_CACHE)));
    }
    match memory() {
        Some(memory) if bytes > memory => {
            Err(format!("the page cache would be larger than the machine's memory, {}", size::show(memory)))
        }
        _ => Ok(()),
    }
}

/// Bytes of memory that the machine has.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
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
        Options::parse(&lists.iter().map(|s| s.to_string()).collect::<Vec<_>>(), Unknown::Refuse)
    }

    #[test]
    fn what_mount_and_fstab_pass_on_is_taken() {
        let o =
            parse(&["defaults,noauto,user=joe,X-mount.mkdir,comment=a,x-systemd.requires=b,user"]).unwrap();
        assert!(o.nodev && o.nosuid && o.noexec && !o.remount);
        let o = parse(&["users,exec,suid,nodiratime,lazytime,remount"]).unwrap();
        assert!(o.nodev && !o.nosuid && !o.noexec && o.remount);
        for option in ["strictatime", "dirsync"] {
            assert!(format!("{:#}", parse(&[option]).unwrap_err()).contains(option));
        }
    }

    #[test]
    fn sloppy_mounts_ignore_what_nobody_knows() {
        let list = ["frob,ro,frob=1".to_owned()];
        assert!(Options::parse(&list, Unknown::Ignore).unwrap().read_only);
        assert!(Options::parse(&["cache=big".to_owned()], Unknown::Ignore).is_err());
    }

    #[test]
    fn flags_and_values() {
        let o = parse(&["ro,noexec,nodev", "dev,cache=512M,threads=3,commit=0.5,engine=pread,log=/tmp/l"])
            .unwrap();
        assert!(o.read_only && o.noexec && !o.nodev);
        assert_eq!((o.cache, o.threads), (Some(512 << 20), Some(3)));
        assert_eq!(o.commit, Some(Duration::from_millis(500)));
        assert_eq!((o.engine, o.log), (Engine::Pread, Some("/tmp/l".into())));
        let o = parse(&["cache-hot=30,cache-size=8M", "cache-policy=touch,cache-shards=3"]).unwrap();
        let touch = TouchOptions { hot_percent: 30, ..TouchOptions::default() };
        assert_eq!(o.cache_policy, Some(PolicyKind::Touch(touch)));
        assert_eq!((o.cache, o.cache_shards), (Some(8 << 20), Some(3)));
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
            "cache-size=8E",
            "cache-policy=lru",
            "cache-shards=0",
            "cache-hot=0",
            "cache-hot=100",
            "cache-hot=20",
            "threads=0",
            "threads=x",
            "commit=-1",
            "commit=NaN",
            "engine=steam",
            "metrics=somewhere",
            "metrics=",
        ];
        for option in wrong {
            let error = format!("{:#}", parse(&["rw", option]).unwrap_err());
            assert!(error.contains(option), "{error}");
        }
    }
}
