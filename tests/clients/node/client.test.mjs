// The official JavaScript client against a running Carob, whose kubeconfig is in KUBECONFIG.
//
// Each test works in a namespace of its own and waits for conditions, never for a while.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import net from 'node:net';
import { PassThrough } from 'node:stream';
import { after, before, test } from 'node:test';

import * as k8s from '@kubernetes/client-node';

const PATIENCE = 60_000;
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const namespace = 'js-' + randomBytes(4).toString('hex');

before(() => core.createNamespace({ body: { metadata: { name: namespace } } }));
after(() => core.deleteNamespace({ name: namespace }));

/** Polls until the condition gives something true, which it returns. */
async function eventually(what, condition) {
    const deadline = Date.now() + PATIENCE;
    while (Date.now() < deadline) {
        const found = await condition();
        if (found) return found;
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error(`not within ${PATIENCE} ms: ${what}`);
}

function pod(name, script) {
    const command = ['sh', '-c', script ?? "trap 'exit 0' TERM; echo begun; while :; do sleep 0.1; done"];
    const containers = [{ name: 'main', image: 'busybox', imagePullPolicy: 'IfNotPresent', command }];
    const spec = { containers, restartPolicy: 'Never', terminationGracePeriodSeconds: 5 };
    return { metadata: { name, labels: { app: name } }, spec };
}

async function start(body) {
    await core.createNamespacedPod({ namespace, body });
    const name = body.metadata.name;
    await eventually(`${name} is ready`, async () => {
        const conditions = (await core.readNamespacedPodStatus({ name, namespace })).status.conditions ?? [];
        return conditions.some((each) => each.type === 'Ready' && each.status === 'True');
    });
}

/** What is read from a stream so far. */
function collected() {
    const stream = new PassThrough();
    stream.text = '';
    stream.on('data', (data) => (stream.text += data));
    return stream;
}

async function refused(call) {
    try {
        await call;
    } catch (error) {
        return { code: error.code, ...JSON.parse(error.body) };
    }
    assert.fail('it was not refused');
}

test('pods are created, listed, patched, logged and deleted', async () => {
    await start(pod('one'));
    const listed = await core.listNamespacedPod({ namespace, labelSelector: 'app=one' });
    assert.deepEqual(listed.items.map((each) => each.metadata.name), ['one']);
    assert.ok(listed.items[0].metadata.creationTimestamp instanceof Date);
    const label = [{ op: 'add', path: '/metadata/labels/colour', value: 'red' }];
    const patched = await core.patchNamespacedPod({ name: 'one', namespace, body: label });
    assert.equal(patched.metadata.labels.colour, 'red');
    const merge = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch);
    const merged = await core.patchNamespacedPod({ name: 'one', namespace, body: { metadata: { labels: { colour: null } } } }, merge);
    assert.deepEqual(merged.metadata.labels, { app: 'one' });
    assert.equal(await core.readNamespacedPodLog({ name: 'one', namespace }), 'begun\n');
    await core.deleteNamespacedPod({ name: 'one', namespace, gracePeriodSeconds: 0 });
    await eventually('it is gone', async () => (await core.listNamespacedPod({ namespace, labelSelector: 'app=one' })).items.length === 0);
});

test('a deployment is scaled', async () => {
    const template = { metadata: { labels: { app: 'web' } }, spec: pod('web').spec };
    delete template.spec.restartPolicy;
    const body = { metadata: { name: 'web' }, spec: { replicas: 1, selector: { matchLabels: { app: 'web' } }, template } };
    await apps.createNamespacedDeployment({ namespace, body });
    const scale = await apps.readNamespacedDeploymentScale({ name: 'web', namespace });
    scale.spec.replicas = 2;
    // Its controller writes beside us: whatever version it has by now is meant.
    delete scale.metadata.resourceVersion;
    await apps.replaceNamespacedDeploymentScale({ name: 'web', namespace, body: scale });
    await eventually('two are ready', async () => (await apps.readNamespacedDeploymentStatus({ name: 'web', namespace })).status.readyReplicas === 2);
    await apps.deleteNamespacedDeployment({ name: 'web', namespace, propagationPolicy: 'Foreground' });
    await eventually('it is gone', async () => (await apps.listNamespacedDeployment({ namespace })).items.length === 0);
});

test('errors are statuses', async () => {
    const missing = await refused(core.readNamespacedPod({ name: 'nobody', namespace }));
    assert.deepEqual([missing.code, missing.reason, missing.message], [404, 'NotFound', 'pods "nobody" not found']);
    const invalid = await refused(core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'Bad_Name' } } }));
    assert.deepEqual([invalid.code, invalid.details.causes[0].field], [422, 'metadata.name']);
});

test('a watch tells changes', async () => {
    const events = [];
    const { metadata } = await core.listNamespacedSecret({ namespace });
    const query = { resourceVersion: metadata.resourceVersion, allowWatchBookmarks: true };
    const ended = new Promise((resolve) => {
        const told = (type, object) => events.push([type, object.metadata.name]);
        new k8s.Watch(config).watch(`/api/v1/namespaces/${namespace}/secrets`, query, told, resolve).then((controller) => {
            core.createNamespacedSecret({ namespace, body: { metadata: { name: 'seen' }, stringData: { a: 'b' } } })
                .then(() => core.deleteNamespacedSecret({ name: 'seen', namespace }))
                .then(() => eventually('both were told', () => events.length === 2))
                .finally(() => controller.abort());
        });
    });
    await ended;
    assert.deepEqual(events, [['ADDED', 'seen'], ['DELETED', 'seen']]);
});

test('an informer holds what is there', async () => {
    const path = `/api/v1/namespaces/${namespace}/configmaps`;
    const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: 'informed' });
    await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'early', labels: { informed: '' } } } });
    const informer = k8s.makeInformer(config, path, list, 'informed');
    const events = [];
    for (const verb of ['add', 'update', 'delete']) informer.on(verb, (object) => events.push(`${verb} ${object.metadata.name}`));
    informer.on('error', (error) => assert.fail(error));
    await informer.start();
    assert.ok(informer.get('early', namespace));
    const body = { metadata: { name: 'late', labels: { informed: '' } }, data: { step: '1' } };
    await core.createNamespacedConfigMap({ namespace, body });
    await core.replaceNamespacedConfigMap({ name: 'late', namespace, body: { ...body, data: { step: '2' } } });
    await core.deleteNamespacedConfigMap({ name: 'early', namespace });
    await eventually('all is told', () => events.length === 4);
    // Not stopped: the client would tell of its own abort as of an error. It ends with the process (--test-force-exit).
    assert.deepEqual(events, ['add early', 'add late', 'update late', 'delete early']);
    assert.deepEqual(informer.list().map((each) => each.data.step), ['2']);
});

test('commands run in a pod, programs are attached to, ports forwarded', async () => {
    await start(pod('box', 'while read line; do echo got $line; done; sleep 1h'));
    const body = pod('server');
    body.spec.containers = [{ name: 'main', image: 'tools', imagePullPolicy: 'IfNotPresent', args: ['http-server'] }];
    body.spec.containers.push({ name: 'reader', image: 'busybox', imagePullPolicy: 'IfNotPresent', stdin: true, command: ['sh', '-c', 'while read line; do echo got $line; done'] });
    await start(body);

    const [out, err, input] = [collected(), collected(), new PassThrough()];
    const status = await new Promise((resolve, reject) => {
        new k8s.Exec(config).exec(namespace, 'server', 'reader', ['sh', '-c', 'read word; echo $word; echo oops >&2; exit 3'], out, err, input, false, resolve).catch(reject);
        input.write('hello\n');
    });
    assert.deepEqual([out.text, err.text], ['hello\n', 'oops\n']);
    assert.deepEqual([status.status, status.reason, status.details.causes[0].message], ['Failure', 'NonZeroExitCode', '3']);

    const [attachedOut, attachedIn] = [collected(), new PassThrough()];
    const attached = await new k8s.Attach(config).attach(namespace, 'server', 'reader', attachedOut, null, attachedIn, false);
    attachedIn.write('words\n');
    await eventually('the program answers', () => attachedOut.text.includes('got words\n'));
    attached.close();

    const forward = new k8s.PortForward(config);
    const server = net.createServer((socket) => forward.portForward(namespace, 'server', [8080], socket, null, socket));
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const answer = await eventually('the server answers', () => new Promise((resolve) => {
        let text = '';
        const socket = net.connect(server.address().port, '127.0.0.1');
        socket.on('data', (data) => {
            text += data;
            if (text.includes('/hello')) {
                socket.destroy();
                resolve(text);
            }
        });
        socket.on('close', () => resolve(''));
        socket.write('GET /hello HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n');
    }));
    assert.match(answer, /^HTTP\/1\.\d 200 /);
    server.close();
});

test('a log is followed', async () => {
    await core.createNamespacedPod({ namespace, body: pod('talker', 'for i in 1 2 3; do echo line $i; done') });
    await eventually('it has run', async () => ['Running', 'Succeeded'].includes((await core.readNamespacedPod({ name: 'talker', namespace })).status.phase));
    const out = collected();
    const ended = new Promise((resolve) => out.on('end', resolve));
    await new k8s.Log(config).log(namespace, 'talker', 'main', out, { follow: true });
    await ended;
    assert.equal(out.text, 'line 1\nline 2\nline 3\n');
});

test('custom objects live as others do', async () => {
    const kind = 'Plant' + randomBytes(3).toString('hex');
    const plural = kind.toLowerCase() + 's';
    const group = 'example.com';
    const properties = { spec: { type: 'object', properties: { height: { type: 'integer', minimum: 1 }, colour: { type: 'string', _default: 'green' } } } };
    const version = { name: 'v1', served: true, storage: true, subresources: { status: {} }, schema: { openAPIV3Schema: { type: 'object', properties } } };
    const definitions = config.makeApiClient(k8s.ApiextensionsV1Api);
    const name = `${plural}.${group}`;
    await definitions.createCustomResourceDefinition({ body: { metadata: { name }, spec: { group, scope: 'Namespaced', names: { kind, plural }, versions: [version] } } });
    await eventually('it is served', async () => (await definitions.readCustomResourceDefinitionStatus({ name })).status?.conditions?.some((each) => each.type === 'Established' && each.status === 'True'));

    const custom = config.makeApiClient(k8s.CustomObjectsApi);
    const where = { group, version: 'v1', namespace, plural };
    const object = { apiVersion: `${group}/v1`, kind, metadata: { name: 'oak' }, spec: { height: 3 } };
    const created = await custom.createNamespacedCustomObject({ ...where, body: object });
    assert.deepEqual(created.spec, { height: 3, colour: 'green' });
    const invalid = await refused(custom.patchNamespacedCustomObject({ ...where, name: 'oak', body: [{ op: 'replace', path: '/spec/height', value: 0 }] }));
    assert.deepEqual([invalid.code, invalid.details.causes[0].field], [422, 'spec.height']);

    // The client that takes any object finds out by itself how it is called.
    const objects = k8s.KubernetesObjectApi.makeApiClient(config);
    const reference = { apiVersion: `${group}/v1`, kind, metadata: { name: 'oak', namespace } };
    assert.equal((await objects.read(reference)).spec.colour, 'green');
    const applied = await objects.patch({ ...reference, spec: { height: 5 } }, undefined, undefined, 'gardener', true, k8s.PatchStrategy.ServerSideApply);
    assert.equal(applied.spec.height, 5);
    assert.ok(applied.metadata.managedFields.some((each) => each.manager === 'gardener' && each.operation === 'Apply'));
    assert.equal((await objects.list(`${group}/v1`, kind, namespace)).items.length, 1);
    await objects.delete(reference);
    for (const each of k8s.loadAllYaml('apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: b}\n')) {
        each.metadata.namespace = namespace;
        await objects.create(each);
    }
    await definitions.deleteCustomResourceDefinition({ name });
});

test('load is measured', async () => {
    const metrics = new k8s.Metrics(config);
    const nodes = await eventually('the node is measured', async () => (await metrics.getNodeMetrics()).items);
    assert.equal(nodes.length, 1);
    assert.ok((await k8s.topNodes(core))[0].CPU.Capacity > 0);
});
