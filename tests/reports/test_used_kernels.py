"""Reports speak of the kernel that a layer multiplies by, not of a term of it."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp


def test_lora_on_a_pruned_layer_is_dense_once_it_has_learnt_something():
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(32)])
    tfmot_asp.prune_trained_model(model, permute=False).remove()
    model.layers[0].enable_lora(4)
    assert tfmot_asp.check_pruned_layers(model) == (1, 1)  # its product is zero at first
    model.layers[0].lora_kernel_b.assign(np.ones((4, 32)))
    assert tfmot_asp.check_pruned_layers(model) == (0, 1)
    assert tfmot_asp.sparsity_report(model).layers[0].zeros < 0.1


def test_a_quantizer_that_knows_no_zero_leaves_no_pattern():
    class Binary(tf_keras.layers.Dense):
        @staticmethod
        def kernel_quantizer(kernel):
            return tf.where(kernel >= 0, 1.0, -1.0)

    model = tf_keras.Sequential([tf_keras.Input((32,)), Binary(32)])
    tfmot_asp.prune_trained_model(model, permute=False)
    assert tfmot_asp.check_pruned_layers(model) == (0, 1)
    assert tfmot_asp.sparsity_report(model).layers[0].zeros == 0
