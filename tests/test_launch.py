"""The templates in launch/: they parse, and what they start exists with the options they give it."""

import json
import os
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SHELL = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])
MANIFESTS = sorted((LAUNCH / "kubernetes").glob("*.yaml"))
SCRIPTS = sorted(LAUNCH.rglob("*.py"))
TEMPLATES = [*SHELL, *MANIFESTS, LAUNCH / "kubernetes" / "Dockerfile", LAUNCH / "ray" / "train.py"]

#: The fields of an MPIJob's spec, kubeflow.org/v2beta1, and of its runPolicy.
MPIJOB = {
    "launcherCreationPolicy",
    "mpiImplementation",
    "mpiReplicaSpecs",
    "runLauncherAsWorker",
    "runPolicy",
    "slotsPerWorker",
    "sshAuthMountPath",
}
#: A file of launch/ in a text, and the options behind it.
FILE, OPTIONS = r"launch/[\w/]+\.(?:py|sh|sbatch|yaml)", r"(?: +(?:-- +)?--[a-z-]+(?: [\w./]+)?)*"
RUN_POLICY = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "cleanPodPolicy",
    "managedBy",
    "schedulingPolicy",
    "suspend",
    "ttlSecondsAfterFinished",
}


def relative(path):
    return str(path.relative_to(LAUNCH))


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", TEMPLATES, ids=relative)
def test_a_template_starts_with_what_it_does_and_what_to_edit(path):
    lines = path.read_text().splitlines()
    header = lines[: next(number for number, line in enumerate(lines) if number > 1 and not line.startswith("#"))]
    if path.suffix == ".py":
        header = path.read_text().split('"""')[1].splitlines()
    assert any("Edit:" in line or "Edit," in line for line in header)
    assert len(header) >= 4


@pytest.mark.parametrize("path", SHELL, ids=relative)
def test_a_shell_script_passes_shellcheck_and_can_be_run(path):
    program = pathlib.Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([program, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK)


@pytest.fixture(scope="module")
def options(run_python):
    """The options that a script's --help names."""
    found = {}

    def options(script):
        if script not in found:
            found[script] = set(re.findall(r"--[a-z][a-z-]*", run_python(str(ROOT / script), "--help")))
        return found[script]

    return options


@pytest.mark.parametrize("path", [*TEMPLATES, *SCRIPTS, LAUNCH / "README.md"], ids=relative)
def test_scripts_that_are_named_exist_and_have_the_options_they_are_given(path, options):
    named = re.findall(
        r"(launch/[\w/]+\.(?:py|sh|sbatch|yaml))((?: +(?:-- +)?--[a-z-]+(?: [\w./]+)?)*)", path.read_text()
    )
    for script, given in named:
        assert (ROOT / script).is_file(), f"{relative(path)} names {script}"
        if script.endswith(".py") and "ray" not in script:
            assert set(re.findall(r"--[a-z][a-z-]+", given)) <= options(script), f"{relative(path)}: {script}{given}"


def test_readme_names_every_template():
    text = (LAUNCH / "README.md").read_text()
    assert [relative(path) for path in TEMPLATES if f"launch/{relative(path)}" not in text] == []


@pytest.mark.parametrize("path", MANIFESTS, ids=relative)
def test_the_pods_of_a_kubernetes_job_pass_kubernetes_own_schema(path):
    job = load(path)
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    replicas = job["spec"].get("mpiReplicaSpecs") or job["spec"]["tfReplicaSpecs"]
    for name, replica in replicas.items():
        assert set(replica) <= {"replicas", "restartPolicy", "template"}
        template = {"metadata": {"name": name.lower()}, **replica["template"]}
        template["spec"] = {**template["spec"], "restartPolicy": replica["restartPolicy"]}
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        broken = json.loads(json.dumps(pod))
        broken["spec"]["containers"][0]["imagee"] = broken["spec"]["containers"][0].pop("image")
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_the_mpijob_has_the_fields_of_v2beta1():
    job = load(LAUNCH / "kubernetes" / "mpijob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    assert set(job["spec"]) <= MPIJOB
    assert set(job["spec"]["runPolicy"]) <= RUN_POLICY
    assert set(job["spec"]["mpiReplicaSpecs"]) == {"Launcher", "Worker"}
    assert job["spec"]["mpiReplicaSpecs"]["Launcher"]["replicas"] == 1


def test_the_tfjob_has_the_fields_of_v1_and_says_that_it_is_legacy():
    path = LAUNCH / "kubernetes" / "tfjob.yaml"
    job = load(path)
    assert path.read_text().startswith("# LEGACY")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "TFJob")
    assert set(job["spec"]) <= {"runPolicy", "tfReplicaSpecs"}
    assert set(job["spec"]["tfReplicaSpecs"]) <= {"Chief", "Worker"}
    for replica in job["spec"]["tfReplicaSpecs"].values():
        assert [container["name"] for container in replica["template"]["spec"]["containers"]] == ["tensorflow"]


def test_discovery_prints_the_hosts_of_a_file_and_nothing_else(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# a comment\nhost-a:2\n\nhost-b:1\n")
    script = LAUNCH / "horovod" / "discover_hosts.sh"
    environment = {**os.environ, "DQAT_HOSTS": str(hosts)}
    assert subprocess.check_output([script], env=environment, text=True) == "host-a:2\nhost-b:1\n"


@pytest.fixture
def recorded(tmp_path):
    """Runs a shell template with programs that write down how they were started; gives the lines."""
    for program in ("horovodrun", "python"):
        file = tmp_path / program
        file.write_text(f'#!/bin/sh\necho {program} "$@" TF_CONFIG="$TF_CONFIG" DQAT_ENGINE="$DQAT_ENGINE"\n')
        file.chmod(0o755)

    def run(template, *arguments, **variables):
        environment = {**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.check_output([LAUNCH / template, *arguments], env=environment, text=True, cwd=ROOT).strip()

    return run


def test_templates_start_the_script_with_its_options(recorded):
    script = "launch/train_sequence.py --units 8"
    assert recorded("horovod/one_host.sh", *script.split(), PROCESSES="3").startswith(
        f"horovodrun -np 3 python {script} "
    )
    several = recorded("horovod/several_hosts.sh", *script.split(), HOSTS="a:2,b:1", INTERFACE="eth1")
    assert (
        "-np 3 -H a:2,b:1 --gloo-timeout-seconds 30 --network-interface eth1 python launch/train_sequence.py" in several
    )
    assert "DQAT_ENGINE=tf" in recorded("tensorflow/mirrored.sh", *script.split())
    worker = recorded("tensorflow/multi_worker.sh", INDEX="1", WORKERS="a:1 b:2")
    configuration = json.loads(worker.partition("TF_CONFIG=")[2].rpartition(" DQAT_ENGINE")[0])
    assert configuration == {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}
    elastic = recorded("horovod/elastic.sh")
    assert "--min-np 1 --max-np 2 --host-discovery-script" in elastic
    assert elastic.partition(" python ")[2].startswith("launch/train_elastic.py")
