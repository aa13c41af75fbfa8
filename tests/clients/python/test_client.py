"""The official Python client against a running Carob, whose kubeconfig is in KUBECONFIG.

Each test works in a namespace of its own and waits for conditions, never for a while.
"""

import datetime
import json
import os
import tempfile
import threading
import time
import unittest
import uuid

import yaml
from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
from kubernetes.stream import portforward, stream

PATIENCE = 60


def eventually(what, condition):
    """Polls until the condition gives something true, which it returns."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


def pod(name, script=None, **more):
    container = {"name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent"}
    container["command"] = ["sh", "-c", script or "trap 'exit 0' TERM; echo begun; while :; do sleep 0.1; done"]
    spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 5}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec, **more}


class Case(unittest.TestCase):
    def setUp(self):
        config.load_kube_config()
        self.core = client.CoreV1Api()
        self.apps = client.AppsV1Api()
        self.namespace = "py-" + uuid.uuid4().hex[:8]
        self.core.create_namespace({"metadata": {"name": self.namespace}})

    def tearDown(self):
        self.core.delete_namespace(self.namespace)

    def start(self, manifest):
        name = manifest["metadata"]["name"]
        self.core.create_namespaced_pod(self.namespace, manifest)

        def ready():
            conditions = self.core.read_namespaced_pod_status(name, self.namespace).status.conditions or []
            return any(each.type == "Ready" and each.status == "True" for each in conditions)

        eventually(f"{name} is ready", ready)

    def fails(self, call, *arguments, **named):
        """The Status that a call is refused with."""
        with self.assertRaises(ApiException) as raised:
            call(*arguments, **named)
        return raised.exception.status, json.loads(raised.exception.body)


class Objects(Case):
    def test_pods_are_created_listed_patched_and_deleted(self):
        self.start(pod("one"))
        self.core.create_namespaced_pod(self.namespace, pod("two"))
        listed = self.core.list_namespaced_pod(self.namespace, label_selector="app in (one,two)")
        self.assertEqual([each.metadata.name for each in listed.items], ["one", "two"])
        self.assertIsInstance(listed.items[0].metadata.creation_timestamp, datetime.datetime)
        first = self.core.list_namespaced_pod(self.namespace, limit=1)
        rest = self.core.list_namespaced_pod(self.namespace, limit=1, _continue=first.metadata._continue)
        self.assertEqual([first.items[0].metadata.name, rest.items[0].metadata.name], ["one", "two"])
        found = self.core.list_pod_for_all_namespaces(field_selector=f"metadata.namespace={self.namespace},metadata.name=two")
        self.assertEqual(len(found.items), 1)
        # The client says merge patch for a map, JSON patch for a list.
        patched = self.core.patch_namespaced_pod("one", self.namespace, {"metadata": {"labels": {"colour": "red"}}})
        self.assertEqual(patched.metadata.labels, {"app": "one", "colour": "red"})
        operations = [{"op": "remove", "path": "/metadata/labels/colour"}]
        self.assertEqual(self.core.patch_namespaced_pod("one", self.namespace, operations).metadata.labels, {"app": "one"})
        self.core.delete_namespaced_pod("two", self.namespace, body=client.V1DeleteOptions(grace_period_seconds=0))
        self.core.delete_collection_namespaced_pod(self.namespace, label_selector="app=one", grace_period_seconds=0)
        eventually("both are gone", lambda: not self.core.list_namespaced_pod(self.namespace).items)

    def test_a_deployment_is_scaled_and_replaced(self):
        template = pod("web")
        del template["spec"]["restartPolicy"], template["apiVersion"], template["kind"], template["metadata"]["name"]
        body = {"metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}}
        self.apps.create_namespaced_deployment(self.namespace, body)
        ready = lambda: self.apps.read_namespaced_deployment_status("web", self.namespace).status.ready_replicas
        eventually("one is ready", lambda: ready() == 1)
        scale = self.apps.patch_namespaced_deployment_scale("web", self.namespace, {"spec": {"replicas": 3}})
        self.assertEqual((scale.kind, scale.spec.replicas, scale.status.selector), ("Scale", 3, "app=web"))
        eventually("three are ready", lambda: ready() == 3)
        deployment = self.apps.read_namespaced_deployment("web", self.namespace)
        deployment.spec.replicas = 0
        deployment.metadata.annotations["note"] = "replaced"
        self.apps.replace_namespaced_deployment("web", self.namespace, deployment)
        eventually("none is left", lambda: not self.core.list_namespaced_pod(self.namespace).items)
        deployment.spec.replicas = 1
        status, error = self.fails(self.apps.replace_namespaced_deployment, "web", self.namespace, deployment)
        self.assertEqual((status, error["reason"]), (409, "Conflict"))
        self.apps.delete_namespaced_deployment("web", self.namespace, propagation_policy="Foreground")
        eventually("it is gone", lambda: not self.apps.list_namespaced_deployment(self.namespace).items)
        self.assertEqual(self.apps.list_namespaced_replica_set(self.namespace).items, [])

    def test_errors_are_statuses(self):
        status, error = self.fails(self.core.read_namespaced_pod, "nobody", self.namespace)
        self.assertEqual((status, error["kind"], error["reason"], error["message"]), (404, "Status", "NotFound", 'pods "nobody" not found'))
        self.assertEqual(error["details"], {"name": "nobody", "kind": "pods"})
        bad = {"metadata": {"name": "Bad_Name"}}
        status, error = self.fails(self.core.create_namespaced_config_map, self.namespace, bad)
        self.assertEqual((status, error["reason"]), (422, "Invalid"))
        self.assertEqual([(cause["field"], cause["reason"]) for cause in error["details"]["causes"]], [("metadata.name", "FieldValueInvalid")])
        name = {"metadata": {"name": "one"}}
        self.core.create_namespaced_config_map(self.namespace, name)
        status, error = self.fails(self.core.create_namespaced_config_map, self.namespace, name)
        self.assertEqual((status, error["reason"]), (409, "AlreadyExists"))
        unknown = {"metadata": {"name": "strict"}, "datum": {}}
        status, error = self.fails(self.core.create_namespaced_config_map, self.namespace, unknown, field_validation="Strict")
        self.assertEqual(status, 400)
        self.assertIn('unknown field "datum"', error["message"])
        status, error = self.fails(self.core.list_namespaced_config_map, self.namespace, _continue="nonsense")
        self.assertEqual(status, 400)
        self.assertIn("continue key is not valid", error["message"])

    def test_tables_and_metadata_are_answered_where_asked_for(self):
        self.core.create_namespaced_config_map(self.namespace, {"metadata": {"name": "one"}, "data": {"a": "1", "b": "2"}})
        path = f"/api/v1/namespaces/{self.namespace}/configmaps/one"

        def get(accept):
            answer = client.ApiClient().call_api(path, "GET", header_params={"Accept": accept}, response_type="object", auth_settings=["BearerToken"])
            return answer[0]

        table = get("application/json;as=Table;v=v1;g=meta.k8s.io")
        self.assertEqual([column["name"] for column in table["columnDefinitions"]], ["Name", "Data", "Age"])
        self.assertEqual(table["rows"][0]["cells"][:2], ["one", 2])
        partial = get("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io")
        self.assertEqual((partial["kind"], "data" in partial), ("PartialObjectMetadata", False))

    def test_manifests_are_created_from_files_of_several_documents(self):
        documents = [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "first"}},
            {"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "second"}, "stringData": {"a": "b"}}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "third"}, "rules": []},
        ]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all(documents, file)
            file.flush()
            created = utils.create_from_yaml(client.ApiClient(), file.name, namespace=self.namespace)
            self.assertEqual(len(created), 3)
            with self.assertRaises(utils.FailToCreateError) as raised:
                utils.create_from_yaml(client.ApiClient(), file.name, namespace=self.namespace)
            self.assertEqual({json.loads(each.body)["reason"] for each in raised.exception.api_exceptions}, {"AlreadyExists"})
        self.assertEqual(self.core.read_namespaced_secret("second", self.namespace).data, {"a": "Yg=="})


class Watching(Case):
    def test_a_watch_tells_changes_and_goes_on_where_it_was(self):
        version = self.core.list_namespaced_config_map(self.namespace).metadata.resource_version
        for step in range(3):
            self.core.create_namespaced_config_map(self.namespace, {"metadata": {"name": f"c{step}"}})
        self.core.delete_namespaced_config_map("c1", self.namespace)
        watcher = watch.Watch()
        seen = []
        for event in watcher.stream(self.core.list_namespaced_config_map, self.namespace, resource_version=version, timeout_seconds=PATIENCE):
            # Each namespace gets one that has the authority's certificate.
            if event["object"].metadata.name != "kube-root-ca.crt":
                seen.append((event["type"], event["object"].metadata.name))
            if event["type"] == "DELETED":
                watcher.stop()
        self.assertEqual(seen, [("ADDED", "c0"), ("ADDED", "c1"), ("ADDED", "c2"), ("DELETED", "c1")])
        # It ends by itself after its time.
        begin = time.monotonic()
        list(watch.Watch().stream(self.core.list_namespaced_config_map, self.namespace, timeout_seconds=1))
        self.assertLess(time.monotonic() - begin, PATIENCE)

    def test_a_log_is_followed_to_its_end(self):
        self.core.create_namespaced_pod(self.namespace, pod("talker", "for i in 1 2 3; do echo line $i; done"))
        phase = lambda: self.core.read_namespaced_pod("talker", self.namespace).status.phase
        eventually("it has run", lambda: phase() in ("Running", "Succeeded"))
        lines = list(watch.Watch().stream(self.core.read_namespaced_pod_log, "talker", self.namespace))
        self.assertEqual(lines, ["line 1", "line 2", "line 3"])
        tail = self.core.read_namespaced_pod_log("talker", self.namespace, tail_lines=1, timestamps=True)
        self.assertRegex(tail, r"^\d{4}-\d\d-\d\dT[\d:.]+Z line 3\n$")


class Streams(Case):
    def test_commands_run_in_a_pod(self):
        self.start(pod("box"))
        call = self.core.connect_get_namespaced_pod_exec
        printed = stream(call, "box", self.namespace, command=["sh", "-c", "echo out; echo err >&2"], stderr=True, stdin=False, stdout=True, tty=False)
        self.assertEqual(sorted(printed.split()), ["err", "out"])
        shell = stream(call, "box", self.namespace, command=["sh"], stderr=True, stdin=True, stdout=True, tty=False, _preload_content=False)
        shell.write_stdin("echo $((40 + 2))\n")
        self.assertEqual(shell.readline_stdout(timeout=PATIENCE), "42")
        shell.write_stdin("echo oops >&2\n")
        self.assertEqual(shell.readline_stderr(timeout=PATIENCE), "oops")
        shell.write_stdin("exit 3\n")
        shell.run_forever(timeout=PATIENCE)
        self.assertEqual(shell.returncode, 3)
        binary = stream(call, "box", self.namespace, command=["head", "-c", "300000", "/dev/zero"], stderr=True, stdin=False, stdout=True, tty=False, _preload_content=False, binary=True)
        binary.run_forever(timeout=PATIENCE)
        self.assertEqual(len(binary.read_all()), 300000)
        with self.assertRaises(ApiException) as raised:
            stream(call, "nobody", self.namespace, command=["true"], stdout=True)
        self.assertIn("404", str(raised.exception))

    def test_a_running_program_is_attached_to(self):
        manifest = pod("reader", "while read line; do echo got $line; done")
        manifest["spec"]["containers"][0]["stdin"] = True
        self.start(manifest)
        attached = stream(self.core.connect_get_namespaced_pod_attach, "reader", self.namespace, stderr=True, stdin=True, stdout=True, tty=False, _preload_content=False)
        attached.write_stdin("words\n")
        self.assertEqual(attached.readline_stdout(timeout=PATIENCE), "got words")
        attached.close()

    def test_ports_are_forwarded(self):
        manifest = pod("server")
        manifest["spec"]["containers"] = [{"name": "main", "image": "tools", "imagePullPolicy": "IfNotPresent", "args": ["http-server"]}]
        self.start(manifest)
        ask = b"GET /hello HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"

        def answered():
            forward = portforward(self.core.connect_get_namespaced_pod_portforward, "server", self.namespace, ports="8080")
            socket = forward.socket(8080)
            socket.settimeout(PATIENCE)
            answer = b""
            try:
                socket.sendall(ask)
                while block := socket.recv(65536):
                    answer += block
            except OSError:
                # Running isn't listening yet.
                return False
            return b" 200 " in answer.split(b"\r\n")[0] and b"/hello" in answer and forward.error(8080) is None

        eventually("the server answers", answered)
        refused = portforward(self.core.connect_get_namespaced_pod_portforward, "server", self.namespace, ports="81")
        socket = refused.socket(81)
        socket.settimeout(PATIENCE)
        socket.recv(1)
        eventually("the refusal is told", lambda: refused.error(81))


class Custom(Case):
    def setUp(self):
        super().setUp()
        self.kind = "Plant" + uuid.uuid4().hex[:6]
        self.plural = self.kind.lower() + "s"
        schema = {"type": "object", "properties": {"spec": {"type": "object", "required": ["height"], "properties": {"height": {"type": "integer", "minimum": 1}, "colour": {"type": "string", "default": "green"}}}, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}
        version = {"name": "v1", "served": True, "storage": True, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}
        names = {"kind": self.kind, "plural": self.plural}
        body = {"metadata": {"name": f"{self.plural}.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]}}
        self.definitions = client.ApiextensionsV1Api()
        self.definitions.create_custom_resource_definition(body)

        def established():
            conditions = self.definitions.read_custom_resource_definition_status(f"{self.plural}.example.com").status.conditions or []
            return any(each.type == "Established" and each.status == "True" for each in conditions)

        eventually("the definition is served", established)

    def tearDown(self):
        self.definitions.delete_custom_resource_definition(f"{self.plural}.example.com")
        super().tearDown()

    def test_custom_objects_live_as_others_do(self):
        api = client.CustomObjectsApi()
        where = ("example.com", "v1", self.namespace, self.plural)
        plant = {"apiVersion": "example.com/v1", "kind": self.kind, "metadata": {"name": "oak"}, "spec": {"height": 3, "gone": 1}}
        created = api.create_namespaced_custom_object(*where, plant)
        self.assertEqual(created["spec"], {"height": 3, "colour": "green"})
        api.patch_namespaced_custom_object(*where, "oak", {"spec": {"height": 4}})
        api.patch_namespaced_custom_object_status(*where, "oak", {"status": {"grown": True}, "spec": {"height": 9}})
        seen = api.get_namespaced_custom_object(*where, "oak")
        self.assertEqual((seen["spec"]["height"], seen["status"]), (4, {"grown": True}))
        status, error = self.fails(api.patch_namespaced_custom_object, *where, "oak", {"spec": {"height": 0}})
        self.assertEqual((status, error["details"]["causes"][0]["field"]), (422, "spec.height"))
        self.assertEqual(len(api.list_cluster_custom_object("example.com", "v1", self.plural)["items"]), 1)
        api.delete_namespaced_custom_object(*where, "oak")
        self.assertEqual(api.list_namespaced_custom_object(*where)["items"], [])

    def test_the_dynamic_client_discovers_kinds(self):
        discovered = dynamic.DynamicClient(client.ApiClient())
        plants = discovered.resources.get(api_version="example.com/v1", kind=self.kind)
        body = {"apiVersion": "example.com/v1", "kind": self.kind, "metadata": {"name": "elm"}, "spec": {"height": 1}}
        plants.create(body=body, namespace=self.namespace)
        self.assertEqual(plants.get(name="elm", namespace=self.namespace).spec.colour, "green")
        body["spec"]["height"] = 2
        applied = plants.server_side_apply(body=body, name="elm", namespace=self.namespace, field_manager="gardener", force_conflicts=True)
        self.assertIn("gardener", [each.manager for each in applied.metadata.managedFields])
        for event in plants.watch(namespace=self.namespace, timeout=PATIENCE):
            self.assertEqual((event["type"], event["object"].spec.height), ("ADDED", 2))
            break
        plants.status.patch(body={"status": {"old": True}}, name="elm", namespace=self.namespace, content_type="application/merge-patch+json")
        deployments = discovered.resources.get(api_version="apps/v1", kind="Deployment")
        self.assertIn("scale", deployments.subresources)
        self.assertEqual(discovered.version["kubernetes"]["major"], "1")
        plants.delete(name="elm", namespace=self.namespace)
        with self.assertRaises(dynamic.exceptions.NotFoundError):
            plants.get(name="elm", namespace=self.namespace)


class Election(Case):
    def test_a_leader_is_elected_and_followed(self):
        led = []
        done = threading.Event()

        def candidate(name, leading):
            lock = ConfigMapLock("leader", self.namespace, name)
            settings = electionconfig.Config(lock, lease_duration=40, renew_deadline=30, retry_period=1, onstarted_leading=leading, onstopped_leading=lambda: None)
            leaderelection.LeaderElection(settings).run()

        def first():
            led.append("first")
            done.set()

        threading.Thread(target=candidate, args=("first", first), daemon=True).start()
        self.assertTrue(done.wait(PATIENCE))

        def record():
            annotations = self.core.read_namespaced_config_map("leader", self.namespace).metadata.annotations
            return json.loads(annotations["control-plane.alpha.kubernetes.io/leader"])

        begun = record()
        self.assertEqual(begun["holderIdentity"], "first")
        eventually("it renews", lambda: record()["renewTime"] > begun["renewTime"])


if __name__ == "__main__":
    # The client leaves sockets to the garbage collector; to hear of each is no use.
    unittest.main(verbosity=2, warnings="ignore")
