"""Trains a small model through every door, on the devices that the command line names, and prints what came of it.

    python -m tests.training.replica one|mirrored|workers|servers|split|keras.distribution

Run as a process of its own by ``test_devices.py``: logical devices must be set up before TensorFlow starts, and each
worker of a cluster is a process. The cluster is in ``TF_CONFIG``; that of parameter servers is in this process.
"""

import hashlib
import json
import os
import socket
import sys

import numpy as np
import tensorflow as tf

STEPS = 6
GLOBAL_BATCH = 8
SERVERS = []  # kept while they serve


def strategy_of(kind):
    if kind == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if kind in ("servers", "split"):
        return parameter_servers(split=kind == "split")
    if kind != "one":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]) if kind == "mirrored" else tf.distribute.get_strategy()


def parameter_servers(split):
    """Two workers and a parameter server, all in this process, as TensorFlow's own guide has them."""
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for held in (a, b, c):
            held.bind(("127.0.0.1", 0))
        first, second, server = (f"127.0.0.1:{held.getsockname()[1]}" for held in (a, b, c))
    cluster = tf.train.ClusterSpec({"worker": [first, second], "ps": [server]})
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=4)  # with fewer they wait for each other
    for job, index in (("worker", 0), ("worker", 1), ("ps", 0)):
        SERVERS.append(tf.distribute.Server(cluster, job_name=job, task_index=index, protocol="grpc", config=config))
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(2) if split else None
    return tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)


def model_of(keras):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    x = layers.Input((16,))
    y = layers.Dense(32, activation="relu", name="first")(x)
    y = layers.Dense(32, activation="relu", name="second")(layers.BatchNormalization(momentum=0.5, name="norm")(y))
    model = keras.Model(x, layers.Dense(8, name="head")(y))
    # Not zeros and ones, so that a wrong order of channels would show.
    generator = np.random.default_rng(2)
    model.set_weights(
        [generator.uniform(0.1, 1, w.shape).astype("f") - 0.5 * (w.ndim > 1) for w in model.get_weights()]
    )
    model.get_layer("norm").trainable = False  # batch statistics are each replica's own
    return model


def doors():
    import keras as keras3
    import tf_keras

    import tfmot_asp

    permute = {"effort": "fast", "device": "cpu", "progress": False}

    def trained(keras):
        model = model_of(keras)
        tfmot_asp.prune_trained_model(model, permute=permute)
        return model, keras.optimizers.SGD(0.05, momentum=0.9)

    def wrapper():
        import tensorflow_model_optimization as tfmot

        schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, 1, 5, frequency=2)
        model = tfmot_asp.prune_low_magnitude(model_of(tf_keras), schedule, permute=permute)
        return model, tf_keras.optimizers.SGD(0.05, momentum=0.9)

    def optimizer(inner):
        model = model_of(tf_keras)
        tfmot_asp.permute(model, **permute)
        return model, tfmot_asp.AspOptimizerWrapperV2(inner, model, permute=False)

    return {
        "wrapper": (tf_keras, wrapper),
        "trained": (tf_keras, lambda: trained(tf_keras)),
        "trained, Keras 3": (keras3, lambda: trained(keras3)),
        "optimizer": (tf_keras, lambda: optimizer(tf_keras.optimizers.SGD(0.05, momentum=0.9))),
        "legacy optimizer": (tf_keras, lambda: optimizer(tf_keras.optimizers.legacy.SGD(0.05, momentum=0.9))),
    }


def train(keras, make, strategy):
    from tfmot_asp import masks
    from tfmot_asp.keras_models.kernels import kernels_of
    from tfmot_asp.keras_models.layers import all_layers
    from tfmot_asp.keras_models.variables import underlying_variable

    with strategy.scope():
        model, optimizer = make()
        model.compile(optimizer, "mse", jit_compile=False)
    kernels = {name: k for name, layer in all_layers(model) for k in kernels_of(layer)}
    start = digest(weights(kernels))
    generator = np.random.default_rng(3)
    x = generator.standard_normal((STEPS * GLOBAL_BATCH, 16)).astype("f")
    y = generator.standard_normal((STEPS * GLOBAL_BATCH, 8)).astype("f")
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(GLOBAL_BATCH).with_options(options)
    losses, zeros = [], []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            # Not the logs: tf_keras adds up what the workers of a cluster report.
            losses.append(float(np.mean((model(x, training=False).numpy() - y) ** 2)))
            zeros.append(digest(values == 0 for values in weights(kernels)))

    model.fit(dataset, verbose=0, shuffle=False, callbacks=[Record()])
    for variable in model.variables:
        parts = [np.asarray(part) for part in getattr(underlying_variable(variable), "values", ())]
        assert all(np.array_equal(part, parts[0]) for part in parts), f"the replicas of {variable.name} differ"
    for kernel in kernels.values():
        assert masks.violations(weights({"": kernel})[0], kernel.layout.reduction_axes) == 0
    return {"start": start, "masks": zeros, "losses": losses, "weights": digest(weights(kernels))}


def weights(kernels):
    return [tf.convert_to_tensor(kernel.tf_variable).numpy() for kernel in kernels.values()]


def digest(arrays):
    result = hashlib.sha256()
    for array in arrays:
        result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()[:16]


def on_servers(keras, make, strategy):
    """Steps come when they come: only what it begins with, and what must hold in the end, is told."""
    from tfmot_asp import masks

    with strategy.scope():
        try:
            model, optimizer = make()
        except ValueError as error:
            return {"refused": str(error)}
        model.compile(optimizer, "mse")
    layers = [layer for layer in model.layers if "kernel" in str([v.name for v in layer.weights])]
    kernels = [getattr(layer, "layer", layer).kernel for layer in layers]
    start = digest(tf.convert_to_tensor(kernel).numpy() for kernel in kernels)
    generator = np.random.default_rng(3)
    x, y = (generator.standard_normal((48, size)).astype("f") for size in (16, 8))
    try:
        data = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(GLOBAL_BATCH)
        model.fit(data, epochs=2, steps_per_epoch=STEPS, verbose=0)
    except ValueError as error:
        return {"fit": str(error)}
    values = [tf.convert_to_tensor(kernel).numpy() for kernel in kernels]
    return {
        "start": start,
        "trained": digest(values) != start,
        "violations": [masks.violations(value, 0) for value in values],
    }


def plain(keras):
    return model_of(keras), keras.optimizers.SGD(0.05)


def distributions():
    """Keras 3's own, none first; on TensorFlow they leave variables where they are."""
    import keras

    devices = ["cpu:0", "cpu:1"]
    mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"] = (None, "model")
    for distribution in (
        None,
        keras.distribution.DataParallel(devices=devices),
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"),
    ):
        keras.distribution.set_distribution(distribution)
        yield type(distribution).__name__, train(*doors()["trained, Keras 3"], tf.distribute.get_strategy())


if __name__ == "__main__":
    strategy = strategy_of(sys.argv[1])  # before anything that starts TensorFlow
    if sys.argv[1] in ("servers", "split"):
        import keras
        import tf_keras

        every = {"plain": (tf_keras, lambda: plain(tf_keras)), "plain, Keras 3": (keras, lambda: plain(keras))}
        result = {name: on_servers(*door, strategy) for name, door in {**every, **doors()}.items()}
        sys.stdout.write(f"RESULT {json.dumps(result)}\n")
        sys.stdout.flush()
        os._exit(0)  # servers have no end
    if sys.argv[1] == "keras.distribution":
        sys.stdout.write(f"RESULT {json.dumps(dict(distributions()))}\n")
        sys.exit()
    found = {"replicas": strategy.num_replicas_in_sync}
    for name, (keras, make) in doors().items():
        if sys.argv[1] != "workers" or "Keras 3" not in name:  # whose fit takes no data of several workers
            found[name] = train(keras, make, strategy)
    sys.stdout.write(f"RESULT {json.dumps(found)}\n")
