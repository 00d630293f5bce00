"""The configuration as GET /api/v1/daemon shows it (spec api §3.1)."""

import json
from pathlib import Path

from nydusd.config.load import load
from nydusd.config.render import render
from nydusd.config.tables import Place, Reading
from nydusd.config.v1 import V1
from nydusd.config.v2 import V2
from tests.support.configs import REGISTRY_V1, v1, v2


def shown(document: dict) -> dict:
    """The rendered configuration, also of settings that are not served yet."""
    table = V2 if "version" in document else V1
    return render(table(document, Place(Reading("c"))))


# Spec api §3.1, with the work_dir of the document it comes from.
REGISTRY_SHOWN = json.loads("""
{"version":2,"id":"/42",
 "backend":{"type":"registry","localdisk":null,"localfs":null,"oss":null,"s3":null,
   "registry":{"scheme":"https","host":"ghcr.io","repo":"dragonflyoss/image-service/nginx","auth":null,
     "skip_verify":false,"ca_cert_files":[],"timeout":5,"connect_timeout":5,"retry_limit":2,
     "registry_token":null,"blob_url_scheme":"","blob_redirected_host":"",
     "proxy":{"url":"","ping_url":"","fallback":false,"check_interval":5,"use_http":false,
              "check_pause_elapsed":300,"dragonfly_scheduler_endpoint":""}},"http-proxy":null},
 "external_backends":[],
 "cache":{"type":"blobcache","compressed":false,"validate":false,
   "prefetch":{"enable":true,"threads":8,"batch_size":1048576,"bandwidth_limit":0,"prefetch_all":true,
               "stream_prefetch":false},
   "filecache":{"work_dir":"/var/lib/containerd/io.containerd.snapshotter.v1.nydus/cache",
                "disable_indexed_map":false,"enable_encryption":false,
                "enable_convergent_encryption":false,"encryption_key":""},"fscache":null},
 "rafs":{"mode":"direct","batch_size":1048576,"validate":false,"enable_xattr":true,
   "iostats_files":false,"access_pattern":false,"latest_read_files":false,
   "prefetch":{"enable":true,"threads":8,"batch_size":1048576,"bandwidth_limit":0,"prefetch_all":true,
               "stream_prefetch":false}},
 "overlay":null}
""")


def test_a_registry_document_is_shown_as_the_spec_has_it():
    assert shown(REGISTRY_V1) == REGISTRY_SHOWN


def test_an_absent_prefetch_section_is_shown_with_zeros():
    rendered = shown(v1())
    none = {"enable": False, "threads": 0, "batch_size": 0, "bandwidth_limit": 0}
    assert rendered["rafs"]["prefetch"] == {**none, "prefetch_all": False, "stream_prefetch": False}
    assert rendered["cache"]["prefetch"] == {**none, "prefetch_all": True, "stream_prefetch": False}


def test_without_a_cache_no_filecache_is_shown():
    rendered = shown(v1(cache={"type": ""}))
    assert (rendered["cache"]["type"], rendered["cache"]["filecache"]) == ("", None)


def test_what_is_shown_reads_as_the_same_configuration():
    assert load(json.dumps(shown(v2())), "c") == load(json.dumps(v2()), "c")


def test_an_overlay_is_shown():
    overlay = {"upper_dir": "/u", "work_dir": "/w"}
    assert shown(v2(overlay=overlay))["overlay"] == overlay


def test_keys_of_an_account_are_not_shown():
    options = {"region": "r", "endpoint": "", "bucket_name": "b"}
    keys = {"access_key_id": "AKIA", "access_key_secret": "s3cr3t"}
    rendered = shown(v2(backend={"type": "s3", "s3": {**options, **keys}}))
    table = rendered["backend"]["s3"]
    assert table["access_key_id"] is None
    assert table["access_key_secret"] is None
    assert table["connect_timeout"] == 5
    assert table["proxy"]["check_interval"] == 5
    assert table["ca_cert_files"] == []


def test_passwords_in_urls_and_external_backends_are_not_shown():
    document = v2(
        backend={
            "type": "registry",
            "registry": {"host": "h", "repo": "r", "proxy": {"url": "http://u:s3cr3t@p:1"}},
        },
        external_backends=[
            {"patch": {}, "type": "s3", "config": {"secret_key": "s3cr3t", "a": "b"}}
        ],
    )
    rendered = shown(document)
    assert "s3cr3t" not in json.dumps(rendered)
    assert rendered["backend"]["registry"]["proxy"]["url"] == "http://***@p:1"
    assert rendered["external_backends"][0]["config"] == {"secret_key": "", "a": "b"}


def test_configurations_of_the_vectors_are_shown_as_the_reference_showed_them(vectors: Path):
    answers = sorted(vectors.glob("*/api/before/GET_api_v1_daemon.http"))
    assert answers
    for answer in answers:
        vector = answer.parents[2]
        document = json.loads((vector / "vector.json").read_text())["daemon"]["config"]
        body = json.loads(answer.read_bytes().partition(b"\r\n\r\n")[2])
        assert shown(document) == body["backend_collection"]["/"]["config"], vector.name
