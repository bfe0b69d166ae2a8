"""A Ceph object gateway on one machine: one monitor, one object store daemon, one gateway.

The daemons are Debian's (ceph-mon, ceph-osd, radosgw, ceph-common), run in the foreground as the
calling user, with everything in one folder and on the loopback interface only. Ready after 5 to 6 s.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from s3mount.demo.server_process import ServerProcess
from tests.servers import S3Server

HOST = "127.0.0.1"
ACCESS_KEY = "s3mountkey"
SECRET_KEY = "s3mountsecret"

STORE_BYTES = 40 << 30
"""The object store's sparse file: deleted data is freed late, so it is roomy."""
PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "openssl", "radosgw", "radosgw-admin")
PORTS = 40
PORTS_LOWEST = 20_000
PORTS_HIGHEST = 32_000
"""Below the ports that the kernel gives to outgoing connections."""

# One copy of everything and no authentication between the daemons, who only talk to each other;
# the gateway checks S3's signatures and policies as ever.
CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port},v1:127.0.0.1:{mon_port_v1}]
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
# The gateway asks for an encrypted session by default, which needs the authentication left out above.
ms_mon_client_mode = crc secure
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
log_to_file = false
pid_file = {folder}/run/$name.pid
crash_dir = {folder}/log
keyring = {folder}/keyring
debug_ms = 0/0
debug_mon = 0/0
debug_monc = 0/0
debug_paxos = 0/0
debug_osd = 0/0
debug_objecter = 0/0
debug_bluestore = 0/0
debug_bdev = 0/0
debug_rocksdb = 0/0
debug_rgw = 0/0
ms_bind_port_min = {osd_port_min}
ms_bind_port_max = {osd_port_max}
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
mon_warn_on_pool_no_redundancy = false

[mon]
mon_data = {folder}/mon
mon_cluster_log_to_file = false
log_to_stderr = true
# The machine's disk may be nearly full; that is not what is tested here.
mon_data_avail_crit = 1
mon_data_avail_warn = 2
# A cluster of one has nobody to wait for: without these every change of the map takes a second.
paxos_propose_interval = 0.05
paxos_min_wait = 0.02

[osd]
osd_data = {folder}/osd
log_to_stderr = true
osd_objectstore = bluestore
bluestore_block_size = {store_bytes}
bluestore_fsck_on_mount = false
osd_memory_target = 2147483648
{class_dir}osd_class_load_list = *
osd_class_default_list = *

[client.rgw]
log_to_stderr = true
rgw_frontends = beast endpoint=127.0.0.1:{http_port} ssl_endpoint=127.0.0.1:{https_port} \
ssl_certificate={folder}/tls.pem ssl_private_key={folder}/tls.key tcp_nodelay=1
rgw_data = {folder}/rgw
rgw_dns_name = localhost
# SSE-C over plain http, which only a test would want.
rgw_crypt_require_ssl = false
rgw_dynamic_resharding = false
rgw_enable_usage_log = false
# Space of deleted objects comes back after seconds instead of two hours.
rgw_gc_obj_min_wait = 15
rgw_gc_processor_period = 15
rgw_gc_processor_max_time = 15
"""


class CephError(Exception):
    """The gateway could not be started; the message is for the person who ran the tests."""


@contextlib.contextmanager
def running_ceph(folder: Path) -> Iterator[S3Server]:
    """A gateway of its own, with its data below ``folder``, while the block lasts."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise CephError(
            f"Ceph is not installed ({', '.join(missing)} missing): run `make setup`,"
            " or choose S3MOUNT_TEST_SERVERS=localstack"
        )
    own = Path(tempfile.mkdtemp(prefix="ceph-", dir=folder))
    cluster = _Cluster(own)
    try:
        cluster.start()
        yield S3Server(
            name="ceph",
            endpoint_url=f"http://{HOST}:{cluster.port}",
            https_url=f"https://localhost:{cluster.port + 1}",
            ca_bundle=str(own / "tls.pem"),
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
        )
    finally:
        cluster.stop()
        shutil.rmtree(own, ignore_errors=True)


class _Cluster:
    """The daemons of one cluster, in the order in which they were started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_ports(PORTS)
        self.configuration = folder / "ceph.conf"
        self._daemons: list[ServerProcess] = []
        self._fsid = str(uuid.uuid4())

    def start(self) -> None:
        """Make the cluster and return when the gateway answers. Raises CephError."""
        for name in ("log", "mon", "osd", "rgw", "run"):
            (self.folder / name).mkdir()
        (self.folder / "keyring").touch()
        self.configuration.write_text(
            CONFIGURATION.format(
                folder=self.folder,
                fsid=self._fsid,
                http_port=self.port,
                https_port=self.port + 1,
                mon_port=self.port + 2,
                mon_port_v1=self.port + 3,
                osd_port_min=self.port + 4,
                osd_port_max=self.port + PORTS - 1,
                store_bytes=STORE_BYTES,
                class_dir="".join(f"osd_class_dir = {found}\n" for found in _class_dirs()[:1]),
            )
        )
        self._make_certificate()
        self._start_monitor()
        self._start_object_store()
        self._start_gateway()

    def stop(self) -> None:
        """End the daemons, last started first."""
        while self._daemons:
            self._daemons.pop().stop()

    def _make_certificate(self) -> None:
        self._run(
            *("openssl", "req", "-x509", "-nodes", "-days", "30"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", "/CN=localhost", "-addext", f"subjectAltName=DNS:localhost,IP:{HOST}"),
            *("-keyout", str(self.folder / "tls.key"), "-out", str(self.folder / "tls.pem")),
        )

    def _start_monitor(self) -> None:
        monmap = str(self.folder / "monmap")
        addresses = f"[v2:{HOST}:{self.port + 2},v1:{HOST}:{self.port + 3}]"
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", addresses, monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        self._until("the monitor to answer", 30, lambda: bool(self._ask("mon", "stat")))

    def _start_object_store(self) -> None:
        identity = str(uuid.uuid4())
        self._run("ceph", "osd", "new", identity, "0")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=localhost", "root=default")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
        self._daemon("ceph-osd", "-i", "0")
        self._until("the object store to be up", 60, lambda: "1 up" in self._ask("osd", "stat"))

    def _start_gateway(self) -> None:
        self._run(
            *("radosgw-admin", "user", "create", "--uid=s3mount", "--display-name=s3mount"),
            "--max-buckets=0",
            f"--access-key={ACCESS_KEY}",
            f"--secret-key={SECRET_KEY}",
        )
        self._daemon("radosgw", "-n", "client.rgw")
        self._until("the gateway to answer", 60, lambda: _accepts(self.port))

    def _environment(self) -> dict[str, str]:
        return os.environ | {"CEPH_CONF": str(self.configuration)}

    def _run(self, *command: str, timeout_s: float = 60) -> str:
        """Run a command to its end; its output. Raises CephError with its last line."""
        try:
            done = subprocess.run(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CephError(f"{' '.join(command)}: no end within {timeout_s:.0f} s") from None
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise CephError(f"{' '.join(command)}: {said}")
        return done.stdout

    def _ask(self, *question: str) -> str:
        with contextlib.suppress(CephError):
            return self._run("ceph", "--connect-timeout", "5", *question, timeout_s=10)
        return ""

    def _daemon(self, program: str, *arguments: str) -> None:
        self._daemons.append(
            ServerProcess(
                [program, "-f", "-c", str(self.configuration), *arguments],
                environment=self._environment(),
                log_path=self.folder / "log" / f"{program}.out",
                remove=[self.folder],
                patience_s=0.5,  # nothing in there is needed any more
            )
        )

    def _until(self, what: str, timeout_s: float, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout_s
        daemon = self._daemons[-1]
        while not true():
            if not daemon.is_running() or time.monotonic() > deadline:
                raise CephError(f"waited in vain for {what}: {daemon.log_tail()}")
            time.sleep(0.05)


def _class_dirs() -> list[Path]:
    """Where Debian's packages put what the object store daemon loads: Ceph 18.2 there looks below its
    working folder."""
    return sorted(Path("/usr/lib").glob("*-linux-*/rados-classes"))


def _free_ports(count: int) -> int:
    """The first of ``count`` consecutive ports on which nobody listens at the moment."""
    for _ in range(100):
        first = random.randrange(PORTS_LOWEST, PORTS_HIGHEST - count)
        if all(_bindable(port) for port in range(first, first + count)):
            return first
    raise CephError(f"no {count} free ports in a row between {PORTS_LOWEST} and {PORTS_HIGHEST}")


def _bindable(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind((HOST, port))
        return True
    return False


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=2):
        return True
    return False
