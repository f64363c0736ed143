from search_client.published import PUBLISHED, comparable


def test_published_networks_are_shown_beside_imagenet_accuracies_on_the_same_phone_alone() -> None:
    assert comparable(device_model="Google pixel 3", classes=1000) == PUBLISHED
    assert comparable(device_model="Pixel 6", classes=1000) == ()
    assert comparable(device_model="Pixel 3", classes=10) == ()
